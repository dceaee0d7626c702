"""Whether drawing loads pyplot, and whether matplotlib's settings are as before."""

import io
import sys

import jax.numpy as jnp
import matplotlib


def settings():
    return [matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"]


before = settings()
from jaxloss import plots  # noqa: E402

plots.residual_panel(jnp.arange(5.0), jnp.ones(5)).savefig(io.BytesIO())
print("matplotlib.pyplot" in sys.modules, before == settings())
