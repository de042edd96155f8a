"""The table of methods: one protocol, one small file per idea."""

from typing import Any

from bico.methods.ablations import GradientOnly, InputOnly, OutputOnly
from bico.methods.bico import BiCo
from bico.methods.cross_lora import CrossLora
from bico.methods.evidence import Evidence, Gathered, Needs
from bico.methods.few_shot import FewShot
from bico.methods.gradfix import GradFix
from bico.methods.orthogonal_shift import OrthogonalShift
from bico.methods.pro_lora import ProLora
from bico.methods.protocol import Method, Others, Pair, Serves
from bico.methods.settings import build_part
from bico.methods.spec import Part
from bico.methods.theseus import Theseus
from bico.methods.theseus_data_free import TheseusDataFree
from bico.methods.transfusion import TransFusion
from bico.methods.unaligned import Crop, Naive, ZeroPad

_METHODS: tuple[type[Method], ...] = (
    BiCo,
    Theseus,
    InputOnly,
    OutputOnly,
    GradientOnly,
    GradFix,
    TransFusion,
    TheseusDataFree,
    CrossLora,
    ProLora,
    FewShot,
    Naive,
    OrthogonalShift,
    ZeroPad,
    Crop,
)
METHODS = {method.name: method for method in _METHODS}


def get_method(text: str, **defaults: Any) -> Method:
    """Returns a method by its name and settings.

    Arguments:
        text: `name`, or `name:key=value:key=value`.
        defaults: Settings for methods that have them and do not say themselves.

    Raises:
        UnknownMethodError: Naming the nearest valid name.
        ConfigError: Naming the nearest valid setting or value.

    Example:
        >>> get_method("gradfix:mask=force")
        GradFix(mask=<Mask.FORCE: 'force'>, vote=<Vote.MAJORITY: 'majority'>)
    """
    return build_part(Part.parse(text), METHODS, defaults)


__all__ = ["METHODS", "Evidence", "Gathered", "Method", "Needs", "Others", "Pair", "Serves", "get_method"]
