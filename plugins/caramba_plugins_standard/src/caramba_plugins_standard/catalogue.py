"""Which distribution supplies which component, for components that may not be installed.

An error about an unknown name looks here for the distribution to install.  Each kind maps names to distributions.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CATALOGUE"]

CATALOGUE: Final[dict[str, dict[str, str]]] = {
    "attention": {
        "dba": "caramba-plugins-dba",
        "gqa": "caramba-plugins-standard",
        "mha": "caramba-plugins-standard",
    },
    "loader": {
        "gguf": "caramba-plugins-llama",
        "huggingface": "caramba-plugins-llama",
    },
    "mode": {"convert": "caramba-plugins-upcycle"},
    "preset": {
        "llama32_1b_dba": "caramba-plugins-dba",
        "smollm2_135m_dba": "caramba-plugins-dba",
    },
    "strategy": {
        "upcycle.blockwise": "caramba-plugins-upcycle",
        "upcycle.global": "caramba-plugins-upcycle",
    },
    "transplant": {"gqa_to_dba": "caramba-plugins-dba"},
}
