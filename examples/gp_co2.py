"""CO₂ at Mauna Loa: a Gaussian process by exact marginal likelihood, and ten years of forecast against what came.

python examples/gp_co2.py [--quick] [--plot FILE.png]
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import estimax
from estimax import models

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="every fourth month only")
parser.add_argument("--plot", metavar="FILE.png", help="draw data and forecast")
args = parser.parse_args()

shelf = models.get("co2_gp")
data, later = shelf.data(), shelf.held_out()
if args.quick:
    data = {name: value[::4] for name, value in data.items()}

result = estimax.fit(shelf.model, estimax.estimators.GPEvidence(), data, num_steps=20 if args.quick else 200)
print(result.summary().round(3))
print(result.diagnose())

forecast = result.predict(later)
low, high = forecast.interval(0.9)
inside = np.mean((later["y"] >= low) & (later["y"] <= high))
error = np.sqrt(np.mean((forecast.mean - later["y"]) ** 2))
print(f"ten years ahead: error {error:.2f} ppm, {inside:.0%} of months in the 90% interval, "
      f"log density {forecast.log_density().mean():.2f} a month")  # fmt: skip

if args.plot:
    plt.figure(figsize=(9, 4))
    plt.plot(data["X"], data["y"], "k.", ms=2, label="fitted")
    plt.plot(later["X"], later["y"], "C3.", ms=3, label="held out")
    plt.plot(later["X"], forecast.mean, "C0", label="forecast")
    plt.fill_between(later["X"], low, high, alpha=0.3, label="90%")
    plt.legend()
    plt.ylabel("CO₂, ppm")
    plt.savefig(args.plot, dpi=120, bbox_inches="tight")
    print(f"picture: {args.plot}")
