import pytest

from alexnet_jax import lock, member_runs, workdir

# Nobody asks it anything where there are no checkpoints.
PROGRAM = object()


def contents(path) -> dict[str, bytes]:
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob("*")
    if file.is_file()
  }


def test_changed_config_is_accepted_on_request_and_the_earlier_one_kept(
  tiny_config, tmp_path
):
  path, found = str(tmp_path), {"dataset": "digits/1.0.0"}
  assert not member_runs.claim(path, tiny_config.to_dict(), found)
  first = contents(tmp_path)
  assert list(first) == ["config.json"]
  # Where it is computed changes nothing.
  tiny_config.layout.name = "two_column"
  assert not member_runs.claim(path, tiny_config.to_dict(), found)
  second = contents(tmp_path)
  tiny_config.optimizer.learning_rate = 0.5
  with pytest.raises(ValueError, match="learning_rate: 0.01 there, 0.5 here"):
    member_runs.claim(path, tiny_config.to_dict(), found)
  assert contents(tmp_path) == second
  said = member_runs.claim(
    path, tiny_config.to_dict(), found, accept_for=PROGRAM
  )
  assert said == [
    "changed after step 0, as --accept_changes says: "
    "optimizer.learning_rate: 0.01 there, 0.5 here"
  ]
  assert workdir.read(path)["optimizer.learning_rate"] == 0.5
  aside = {"config.step_0.json": second["config.json"]}
  assert aside.items() <= contents(tmp_path).items()
  # That of which nothing came is not kept.
  tiny_config.seed = 7
  member_runs.claim(path, tiny_config.to_dict(), found, accept_for=PROGRAM)
  assert aside.items() <= contents(tmp_path).items()
  assert len(contents(tmp_path)) == 2


def test_ensemble_is_claimed_and_locked_as_a_whole(tiny_config, tmp_path):
  tiny_config.ensemble = 2
  fields = tiny_config.to_dict()
  held = member_runs.hold(str(tmp_path), fields)
  member_runs.claim(str(tmp_path), fields, {})
  with pytest.raises(OSError, match="member_1' is in use by process"):
    lock.Lock(str(tmp_path / "member_1"))
  # One of the members has gone on alone, as something else.
  other = tiny_config.to_dict() | {"seed": 5}
  alone = member_runs.find_config(other, 1)
  workdir.keep(str(tmp_path / "member_1"), workdir.to_fields(alone, {}))
  before = contents(tmp_path)
  with pytest.raises(ValueError, match="member_1' .* seed: 6 there, 1 here"):
    member_runs.claim(str(tmp_path), fields, {})
  assert contents(tmp_path) == before
  for one in held:
    one.release()
