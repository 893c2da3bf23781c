"""Refusals that a user can act on: one sentence saying what was found, what was expected, and the remedy."""


class FunnelcastError(Exception):
    """A refusal for the user; the command line prints `funnelcast: <message>` and exits with 2."""


class FunnelError(FunnelcastError, ValueError):
    """A funnel file that names unknown stages or events, or contradicts itself."""


class BundleError(FunnelcastError):
    """A bundle that is incomplete, damaged, or made for another contract."""


class TableError(FunnelcastError):
    """Table bytes that this program did not write, or wrote in another version."""
