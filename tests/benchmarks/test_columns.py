from benchmarks.results import columns


def test_runs_are_drawn_as_lines_between_their_columns():
  pairs = [(0.2, 0.3), (0.5, 0.4)]
  (panel,) = columns.to_figure({"a": pairs, "b": pairs[:1]}).axes
  drawn = [tuple(line.get_xdata()) for line in panel.lines]
  assert drawn == [*pairs, pairs[0]]
