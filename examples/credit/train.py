"""Who is well off? A logistic regression on the bank's and the merchant's columns, which nobody joins.

    hansa mpc party --me bank --parties parties.toml train.py      the same with --me shop, and --me helper without data

Each owner reads its own aligned table. The bank learns its coefficients and the predictions, the merchant its own
coefficients, the helper nothing.
"""

from pathlib import Path

import numpy as np

import hansa.mpc
from hansa.vertical import Glm, save_part
from hansa.vertical.encode import one_hot
from hansa.vertical.psi.files import read_aligned

with hansa.mpc.connect() as session:
    file = Path(f"{session.me}-aligned.csv")
    train = test = None
    if file.is_file():
        train, test = one_hot(read_aligned(file)).split(0.7, seed=1)
        train = train.only([name for name in train.names if train[name].std() > 0])  # rare categories may be absent
    label = "well_off" if session.me == "bank" else None
    model = Glm(solver="newton", epochs=6, l2=0.01, errors=True).fit(session, train, label)
    save_part(model, f"{session.me}-part.json", protocol="aby3")  # for service.py
    chance = model.predict(session, test, to="bank")
    if model.names:
        print(f"what {session.me} learns of its columns:\n{model.summary()}")
    if chance is not None and test is not None:
        np.savetxt("bank-answers.csv", np.column_stack([test["well_off"], chance]), header="well_off chance")
        print(f"the bank's answers: {len(chance)} people, mean chance {chance.mean():.3f}")
