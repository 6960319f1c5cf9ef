"""Every hook that a plugin can implement."""

import pluggy

hookspec = pluggy.HookspecMarker("caramba")
hookimpl = pluggy.HookimplMarker("caramba")
