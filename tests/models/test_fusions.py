"""TabMixer and attention over the table's columns: what they read, and what a gap means."""

import pytest
import torch
from torch import nn

from hyperfusion_rt.config import Feature, TableSpec
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.encoder_columns import InputColumn
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.models.attention import ColumnTokens, TableAttention
from hyperfusion_rt.models.tabmixer import Mixing, TabMixer

# A number with gaps, three categories, a number without.
COLUMNS = (InputColumn((0,), 1), InputColumn((2, 3, 4), None), InputColumn((5,), None))


def test_the_encoder_says_which_inputs_a_column_has():
    cells = [("1", "a", "2"), ("", "b", "3"), ("4", "", "5")]
    rows = [
        Row(str(n), None, n, dict(zip(("X", "C", "Y"), values, strict=True)))
        for n, values in enumerate(cells)
    ]
    features = (
        Feature(name="X", kind="numeric"),
        Feature(name="C", kind="categorical", categories=("a", "b")),
        Feature(name="Y", kind="numeric"),
    )
    spec = TableSpec(features=features, target="T", imputer="median")
    encoder = TabularEncoder.fit(rows, spec)
    names = [[encoder.names[i] for i in column.positions] for column in encoder.input_columns]
    assert names == [["X", "X:missing"], ["C=a", "C=b", "C:missing"], ["Y"]]
    assert [c.gap for c in encoder.input_columns] == [1, 4, None]


def test_a_column_is_a_token():
    """By the formula, one column after the other."""
    torch.manual_seed(0)
    tokens = ColumnTokens(COLUMNS, 4)
    row = torch.tensor([[0.7, 0.0, 0.0, 1.0, 0.0, -2.0], [0.3, 1.0, 1.0, 0.0, 0.0, 5.0]])
    found = tokens(row).view(2, 3, 4)
    w, b = tokens.weight, tokens.bias
    expected = torch.stack(
        [
            torch.stack([b[0] + 0.7 * w[0], b[1] + w[3], b[2] - 2 * w[5]]),
            torch.stack([w[1], b[1] + w[2], b[2] + 5 * w[5]]),
        ]
    )
    torch.testing.assert_close(found, expected)


def test_what_was_imputed_for_a_missing_value_does_not_count():
    torch.manual_seed(0)
    attention = TableAttention(5, COLUMNS)
    row = torch.tensor([[0.7, 1.0, 0.0, 1.0, 0.0, -2.0]], requires_grad=True)
    x = torch.randn(1, 5)
    attention(x, row).backward(torch.randn(1, 5))
    assert row.grad[0, 0] == 0
    assert (row.grad[0, 1:].abs() > 0).all()
    gradient = attention.tokens.weight.grad
    assert (gradient[1].abs() > 0).all()  # the token of the missing value learns
    assert not gradient[0].any()
    other = row.detach().clone()
    other[0, 0] = 99.0
    assert torch.equal(attention(x, row), attention(x, other))


def test_attention_is_that_of_torch():
    """One head against `scaled_dot_product_attention` of the same query, keys and values."""
    torch.manual_seed(0)
    attention = TableAttention(5, COLUMNS, width=4, heads=1)
    x, row = torch.randn(2, 5, 2, 3, 2), torch.randn(2, 6)
    tokens = attention.tokens(row).view(2, 3, 4)
    query = attention.query(x.mean((2, 3, 4)))[:, None]
    heard = nn.functional.scaled_dot_product_attention(query, tokens, tokens)[:, 0]
    shift = attention.shift(attention.mix(heard).relu())
    torch.testing.assert_close(attention(x, row), x + shift[:, :, None, None, None])


def test_mixing_is_a_perceptron_along_one_axis():
    torch.manual_seed(0)
    mixing = Mixing(3, 4, 5, 2)
    m, e = torch.randn(2, 3, 4, 5), torch.randn(2, 2)
    along = m.movedim(2, -1)  # [B, 3, 5, 4]
    table = mixing.table(e)[:, None, None]
    made = mixing.down(nn.functional.gelu(mixing.up(along) + table)).movedim(-1, 2)
    torch.testing.assert_close(mixing(m.flatten(1), e).view_as(m), m + made)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 4, 5), (6, 3, 2)])
def test_tabmixer_takes_any_volume(size):
    torch.manual_seed(0)
    mixer = TabMixer(3, 4, volume=True)
    x, row = torch.randn(2, 3, *size), torch.randn(2, 4, requires_grad=True)
    y = mixer(x, row)
    assert y.shape == x.shape
    y.backward(torch.randn_like(y))
    assert (row.grad.abs() > 0).all()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad.abs().max() > 0, name
