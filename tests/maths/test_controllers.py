"""The KL coefficient, every step worked by hand."""

import math

import pytest

from talltree.maths import controllers
from talltree.maths.controllers import KLController


def test_fixed_never_moves(updated=controllers.updated):
    controller = KLController(0.1)
    for kl in (0.0, 1.0, 1000.0, -5.0):
        controller = updated(controller, kl, 64)
    assert controller == (0.1, None, 10_000, 0.0, 1.0)


def test_adaptive_by_hand(updated=controllers.updated):
    start = KLController(0.5, target=6.0, horizon=1000)
    # 6.6 is 10% above target: 0.5 * (1 + 0.1 * 100/1000); on target: unmoved; 5.4: 10% below.
    assert updated(start, 6.6, 100).coef == pytest.approx(0.505, abs=1e-12)
    assert updated(start, 6.0, 100).coef == 0.5
    assert updated(start, 5.4, 100).coef == pytest.approx(0.495, abs=1e-12)
    assert updated(start, 6.6, 100)[1:3] == (6.0, 1000)


def test_gain_by_hand(updated=controllers.updated):
    start = KLController(0.5, target=4.0, horizon=1000, gain=2.0)
    # On target nothing moves. Twice the target: error clipped to 0.2, ratio (1 + 2) / 2 = 1.5,
    # 0.5 * (1 + 0.2 * 0.1) * 1.5 ** 2; back on target, ratio (1.5 + 1) / 2 = 1.25, times (1.25 / 1.5) ** 2.
    assert updated(start, 4.0, 100) == start
    above = updated(start, 8.0, 100)
    assert above.coef == pytest.approx(0.5 * 1.02 * 2.25, abs=1e-12)
    assert above.ratio == pytest.approx(1.5, abs=1e-12)
    assert updated(above, 4.0, 100).coef == pytest.approx(0.5 * 1.02 * 1.5625, abs=1e-12)
    # No KL at all and a hundred times the target count as a quarter and as four times.
    assert updated(start, 0.0, 100).ratio == updated(start, -3.0, 100).ratio == pytest.approx(0.625)
    assert updated(start, 400.0, 100).ratio == pytest.approx(2.5)


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_the_gain_is_given_back(gain, updated=controllers.updated):
    """Where the KL has been leaves no trace by way of the gain: only the slow factor remembers."""
    plain = KLController(0.3, target=5.0, horizon=500)
    steep = KLController(0.3, target=5.0, horizon=500, gain=gain)
    for kl in [0.1, 2.0, 9.0, 30.0, 7.0] + 60 * [5.0]:
        plain, steep = updated(plain, kl, 32), updated(steep, kl, 32)
    assert plain.coef != 0.3
    assert steep.coef == pytest.approx(plain.coef, rel=1e-9)


def test_gain_of_zero_is_the_published_rule(updated=controllers.updated):
    controller, coef = KLController(0.4, target=3.0, horizon=200), 0.4
    for kl in (0.0, 1.0, 2.9, 3.3, 50.0):
        controller = updated(controller, kl, 20)
        coef *= 1 + min(max(kl / 3.0 - 1, -0.2), 0.2) * 20 / 200
    assert controller.coef == pytest.approx(coef, rel=1e-12)


def test_adaptive_error_is_clipped(updated=controllers.updated):
    start = KLController(0.5, target=6.0, horizon=1000)
    # However far off, 20% of n / horizon: 0.5 * (1 +- 0.2 * 0.1).
    assert updated(start, 600.0, 100).coef == pytest.approx(0.51, abs=1e-12)
    assert updated(start, 0.0, 100).coef == pytest.approx(0.49, abs=1e-12)
    assert updated(start, -600.0, 100).coef == pytest.approx(0.49, abs=1e-12)


def test_adaptive_steps_compound(updated=controllers.updated):
    controller = KLController(1.0, target=1.0, horizon=100)
    for kl in (2.0, 2.0, 0.0):
        controller = updated(controller, kl, 50)
    assert controller.coef == pytest.approx(1.1 * 1.1 * 0.9, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((-0.1,), "KL coef -0.1 must be 0 or more"),
        ((math.nan,), "KL coef nan"),
        ((math.inf,), "KL coef inf"),
        ((0.1, 0.0), "KL target 0.0 must be above 0"),
        ((0.1, -6.0), "KL target -6.0"),
        ((0.1, math.nan), "KL target nan"),
        ((0.0, 6.0), "KL coef 0 cannot adapt"),
        ((0.1, 6.0, 0), "KL horizon 0"),
        ((0.1, 6.0, 100, -1.0), "KL gain -1.0 must be 0 or more"),
        ((0.1, 6.0, 100, math.inf), "KL gain inf"),
    ],
)
def test_refused(values, text):
    with pytest.raises(ValueError, match=text):
        KLController(*values)


def test_zero_coefficient_may_stay_fixed():
    assert controllers.updated(KLController(0.0), 3.0, 10).coef == 0.0


def test_update_refuses_what_it_cannot_follow():
    controller = KLController(0.1, 6.0, 100)
    with pytest.raises(ValueError, match="KL nan is not finite"):
        controllers.updated(controller, math.nan, 10)
    with pytest.raises(ValueError, match="500 episodes are too many for KL horizon 100"):
        controllers.updated(controller, 0.0, 500)
    assert controllers.updated(controller, 0.0, 499).coef > 0
