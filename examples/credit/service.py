"""Each owner's side of predicting with what `train.py` saved, for `hansa answer --model service.py`, the same at all.

Columns are made as `one_hot` made those of the training: "work=Private" is 1 where `work` is "Private".
"""

from hansa.vertical import AlignedTable, load_part


def part(mesh):
    """This party's `predict`; a helper's has no table."""
    saved = load_part(f"{mesh.me}-part.json")
    predict, names = saved.over(mesh), saved.model.names
    return lambda table: predict(None if table is None else prepared(table, names))


def prepared(table, names):
    """The columns that the model was trained on."""
    columns = {}
    for name in names:
        column, _, value = name.partition("=")
        columns[name] = (table[column] == value) * 1.0 if value else table[column]
    return AlignedTable(table.owner, columns, table.alignment)
