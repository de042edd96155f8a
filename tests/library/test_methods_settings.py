"""How a method is spelt: `name:key=value`."""

import pytest

from bico.errors import ConfigError, UnknownMethodError
from bico.linalg.procrustes import Completion
from bico.methods import METHODS, Method, Others, get_method
from bico.methods.few_shot import FewShot
from bico.methods.gradfix import GradFix, Mask, Vote
from bico.methods.transfusion import TransFusion


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("gradfix", GradFix(Mask.NORMAL, Vote.MAJORITY)),
        ("gradfix:mask=force:vote=mean", GradFix(Mask.FORCE, Vote.MEAN)),
        ("few-shot:lr=5e-4:weight_decay=0", FewShot(lr=5e-4, weight_decay=0.0)),
        ("transfusion:intra_head=false:sweeps=3", TransFusion(sweeps=3, intra_head=False)),
        ("bico:completion=svd:others=add", METHODS["bico"](completion=Completion.SVD, others=Others.ADD)),
    ],
)
def test_settings_are_typed_by_the_fields(text: str, method: Method) -> None:
    assert get_method(text) == method
    assert all(type(a) is type(b) for a, b in zip(vars(get_method(text)).values(), vars(method).values(), strict=True))


def test_defaults_serve_those_who_have_the_setting_and_do_not_say() -> None:
    assert get_method("bico", completion=Completion.SVD).completion is Completion.SVD
    assert get_method("bico:completion=partial", completion=Completion.SVD).completion is Completion.PARTIAL
    assert get_method("gradfix", completion=Completion.SVD) == GradFix()


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_values(name: str) -> None:
    assert get_method(name) == get_method(name) and len({get_method(name), get_method(name)}) == 1
    assert get_method(name).name == name and get_method(name).reference


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bicoo", UnknownMethodError, "'bicoo': did you mean 'bico'"),
        ("gradfix:mas=force", ConfigError, "gradfix has no setting 'mas': did you mean 'mask'. Valid: mask, vote."),
        ("gradfix:mask=forced", ConfigError, "mask='forced' is not valid: did you mean 'force'. Valid: force, normal"),
        ("transfusion:intra_head=no", ConfigError, "intra_head='no' is not valid: .*false, true"),
        ("transfusion:sweeps=many", ConfigError, "sweeps='many' is not a whole number"),
        ("transfusion:sweeps=0", ConfigError, "sweeps >= 1"),
        ("few-shot:lr=fast", ConfigError, "lr='fast' is not a number"),
        ("few-shot:lr=-1", ConfigError, "lr > 0"),
        ("few-shot:lr=nan", ConfigError, "lr > 0"),
        ("few-shot:lr=inf", ConfigError, "finite"),
        ("few-shot:lr", ConfigError, "'lr' is no setting; write few-shot:key=value"),
        ("few-shot:lr=1:lr=2", ConfigError, "lr is given twice"),
        ("naive:alpha=1", ConfigError, "naive has no setting 'alpha': it has none"),
    ],
)
def test_a_spelling_with_a_mistake_is_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_method(text)


def test_a_runs_rank_of_maps_does_not_reach_what_only_shares_the_name() -> None:
    assert get_method("bico", rank=7).rank == 7 and get_method("bico:rank=5", rank=7).rank == 5
    assert get_method("cross-lora", rank=7).rank == 64 and get_method("cross-lora:rank=3", rank=0).rank == 3
