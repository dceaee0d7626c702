"""What `from jaxloss import plots` says where matplotlib is not installed."""

import sys

sys.modules["matplotlib"] = None

try:
    from jaxloss import plots  # noqa: F401
except ModuleNotFoundError as missing:
    print(missing)
