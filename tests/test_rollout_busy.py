"""The busy meter's arithmetic: what an engine tells of the time it worked."""

from fr3e_async.rollout.port import BusyMeter


def test_busy_intervals_leave_out_idle_and_paused_time():
    meter = BusyMeter()
    meter.enter(1.0)
    meter.enter(2.0)
    meter.leave(3.0)
    meter.pause(4.0)
    meter.enter(4.5)  # arrives during the pause
    meter.resume(5.0)
    meter.leave(6.0)
    meter.leave(7.0)
    assert meter.take(9.0) == ((1.0, 4.0), (5.0, 7.0))
    assert meter.pause_s == 1.0


def test_busy_interval_that_still_lasts_is_cut():
    meter = BusyMeter()
    meter.enter(1.0)
    assert meter.take(2.0) == ((1.0, 2.0),)
    assert meter.take(2.0) == ()
    meter.leave(5.0)
    assert meter.take(9.0) == ((2.0, 5.0),)
