"""The toy of the variational importance sampling paper: what the guide's objective does to the model.

A hidden z from a mixture of four Gaussians is seen only through a coin, x ~ Bernoulli(sigmoid z). The posterior has
several modes, the guide one. Every estimator explains x equally well; they differ in how well model and guide explain
the z that nobody showed them (complete and hidden log-likelihood, per test point, at the true z).

    python examples/vis_mixture.py [--quick]

The paper trains for 200 epochs with 5,000 particles; this is the same with 1,000. With 500 VIS
fails here: an estimate of E[w^2] needs draws in the tail.
"""

import argparse

import estimax
from estimax import estimators
from estimax.models import bernoulli_mixture as toy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick
    num_steps, num_particles = (50, 50) if quick else (2000, 1000)

    x, z = toy.test_set()
    print(f"{num_steps} steps of {toy.BATCH_SIZE} data, {num_particles} particles; log-likelihood per test point")
    print(f"{'estimator':10} {'marginal':>9} {'complete':>9} {'hidden':>9} {'pi':>6}   mu")
    for name in ("VIS", "IWAE", "ELBO"):
        estimator = getattr(estimators, name)(num_particles=num_particles, gradient="score")
        result = estimax.fit(
            toy.model,
            estimator,
            toy.data(),
            guide=toy.guide,
            num_steps=num_steps,
            learning_rate=0.002,
            progress_bar=False,
        )
        p = result.params
        scores = (
            toy.marginal_log_likelihood(p, x),
            toy.complete_log_likelihood(p, x, z),
            toy.hidden_log_likelihood(p, x, z),
        )
        row = " ".join(f"{float(s):9.3f}" for s in scores)
        print(f"{name:10} {row} {float(p['pi']):6.3f}   {p['mu'].round(2)}   ({result.seconds:.0f} s)")
    truth = toy.truth()
    print(f"{'truth':10} {'':9} {'':9} {'':9} {float(truth['pi']):6.3f}   {truth['mu']}")


if __name__ == "__main__":
    main()
