"""Linear models fitted exactly: the minimiser itself, jitted, vmapped and differentiated like any function."""

from jaxloss.solve.fit import LinearFit as LinearFit
from jaxloss.solve.linear import solve_linear as solve_linear
