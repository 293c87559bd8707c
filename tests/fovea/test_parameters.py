from typing import Annotated

import pytest
from pydantic import Field

from fovea.errors import UserError
from fovea.parameters import NOT_IN_RESULT, FormerName, Parameters, parse_parameters


class Some(Parameters):
    """Parameters of some step."""

    lora_r: Annotated[int, FormerName("rank")] = Field(default=16, ge=1, le=256)
    """Rank of the LoRA matrices."""
    rate: float = 1e-4
    note: Annotated[str, NOT_IN_RESULT] = ""
    """Changes nothing."""


def test_wrong_parameters_are_all_named_in_one_line() -> None:
    assert parse_parameters(Some, {"lora_r": 8}) == Some(lora_r=8)
    with pytest.raises(UserError) as caught:
        parse_parameters(Some, {"lora_r": 0, "rate": "fast", "rnak": 3})
    message = str(caught.value)
    assert message.startswith("wrong parameters: ")
    assert "lora_r = 0: input should be greater than or equal to 1" in message
    assert "rate = 'fast': " in message
    assert "rnak = 3: extra inputs are not permitted" in message
    assert "\n" not in message


def test_a_former_name_is_refused_with_the_one_it_has_now() -> None:
    with pytest.raises(UserError, match="rank is now called lora_r"):
        parse_parameters(Some, {"rank": 8})


def test_what_does_not_change_the_result_is_left_out() -> None:
    assert Some(lora_r=8, note="mine").in_result() == {"lora_r": 8, "rate": 1e-4}


def test_a_fields_docstring_is_its_description() -> None:
    assert Some.model_fields["lora_r"].description == "Rank of the LoRA matrices."
    assert Some.model_fields["note"].description == "Changes nothing."


def test_numbers_that_kfp_made_floats_are_read() -> None:
    assert parse_parameters(Some, {"lora_r": 8.0}).lora_r == 8
    with pytest.raises(UserError, match=r"lora_r = 8\.5"):
        parse_parameters(Some, {"lora_r": 8.5})
