"""`estimax bench`: estimators on suites of models whose truth is known, against peers, in one table.

`suites` says on what, `columns` and `peers` say who, `measures` says how well, `runner` does it and `report` shows it.
"""
