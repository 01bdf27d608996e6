"""What a sweep tries of which method."""

from kfbench.config.load import load_config
from kfbench.sweep.plan import plan, trial


def test_a_step_rule_leaves_damping_alone_to_be_tuned():
    config = load_config(specs=["kfac:step=rescale,order=same", "foof", "sgd"], flags={}, command="sweep")
    ruled, foof, sgd = plan(config.with_sweep(parameters=("lr", "damping"), grids={}))
    assert ruled.left_out == ("lr",) and [axis.name for axis in ruled.axes] == ["damping"]
    assert ruled.size == foof.size == sgd.size, "as many trials"
    made = trial(config, ruled, ruled.cells()[0], "grid", 0)
    assert made.config.methods[0].options["step"] == "rescale" and made.config.methods[0].options["lr"] == 1.0
