"""What is remembered of a model: the same answer for other data of the same shapes, a new one for anything else."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import estimax
from estimax.estimators import recall as module
from estimax.estimators.recall import recall


@pytest.fixture(autouse=True)
def forget():
    kept = dict(module._KNOWN)
    module._KNOWN.clear()
    yield
    module._KNOWN.clear()
    module._KNOWN.update(kept)


def test_arrays_count_by_shape_and_type_all_else_by_equality():
    asked = []

    def ask(*about):
        before = len(asked)
        recall("a question", about, lambda: asked.append(about) or len(asked))
        return len(asked) > before

    assert ask(len, jnp.zeros(3), "a")
    assert not ask(len, jnp.ones(3), "a")
    assert not ask(len, np.ones(3, np.float32), "a")
    assert ask(len, jnp.ones(4), "a")
    assert ask(len, jnp.ones(3, jnp.int32), "a")
    assert ask(len, jnp.ones(3), "b")
    assert ask(max, jnp.ones(3), "a")
    for equal in (1, True, 1.0):  # and yet not the same
        assert ask(len, equal)


def test_what_has_no_hash_is_asked_each_time():
    class Unhashable:
        __hash__ = None

    answers = iter(range(2))
    assert recall("a question", Unhashable(), lambda: next(answers)) == 0
    assert recall("a question", Unhashable(), lambda: next(answers)) == 1


def test_the_oldest_is_forgotten():
    for i in range(module._MOST + 10):
        recall("a question", i, lambda i=i: i)
    assert len(module._KNOWN) == module._MOST
    assert recall("a question", 0, lambda: "asked again") == "asked again"
    assert recall("a question", module._MOST + 9, lambda: "asked again") == module._MOST + 9


def test_a_failure_is_not_remembered():
    with pytest.raises(ValueError, match="no"):
        recall("a question", 1, lambda: (_ for _ in ()).throw(ValueError("no")))
    assert recall("a question", 1, lambda: "yes") == "yes"


@pytest.mark.long
def test_the_same_model_with_more_groups_is_looked_at_again():
    """Shapes of data decide the latent sites; a constant of the model's own keyword does too."""

    def model(y, groups=2):
        loc = numpyro.sample("loc", dist.Normal(0, 1).expand([groups]).to_event(1))
        with numpyro.plate("data", y.shape[0]):
            numpyro.sample("y", dist.Normal(loc.sum(), 1.0), obs=y)

    for groups in (2, 3, 2):
        result = estimax.fit(
            model, estimax.estimators.ELBO(2), {"y": np.arange(4.0), "groups": groups}, num_steps=2,
            progress_bar=False,
        )  # fmt: skip
        assert result.sample(5)["loc"].shape == (5, groups)
