"""Several devices and several processes: the numbers of one device, by one all-reduce."""

import pytest
from support import dumping, free_address, run_program, start_program


@pytest.mark.slow
def test_a_mesh_with_explicit_axes_is_served_also_where_it_is_set():
    assert run_program("mesh_explicit").strip() == "served"


@pytest.mark.slow
def test_four_devices_and_micro_batches_agree_with_one():
    assert run_program("mesh_devices").strip() == "agree"


@pytest.mark.slow
def test_one_all_reduce_in_the_step_of_every_loss(tmp_path):
    assert run_program("mesh_collectives", tmp_path, **dumping(tmp_path)).startswith("one each")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_two_processes_agree_with_one(axes):
    address = free_address()
    running = [start_program("mesh_processes", axes, address, rank) for rank in range(2)]
    done = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], done
    told = next(line for line in done[0][0].splitlines() if line.startswith("losses"))
    got, want = ([float(word) for word in text.split()[1:]] for text in (told, run_program("mesh_processes", axes)))
    assert max(abs(a / b - 1) for a, b in zip(got, want, strict=True)) < 2e-6, (got, want)
