"""Compare: runs, metrics, judging, selection, report.

A file imports only from files above it, and from packages below this one.

    components    which parts of a model can go down by themselves (pure)
    results       what a comparison found: its values, and in words what each means
    manifest      NeMo manifests: lines -> clips with their text
    normalising   texts -> words to be counted, without what is only typography (pure)
    judging       word edits, intervals, the noise floor, criteria, verdicts (pure)
    selection     what was measured -> the cheapest strategy that qualifies, and why others do not (pure)
    report.plots  the report's plots as SVG (pure)
    report.documents  a comparison as JSON, and back (pure)
    report.cells  figures as short texts (pure)
    report.sentences  what was found, in sentences (pure)
    report.table  tables for a terminal (pure)
    report.page   one comparison as an HTML page (pure)
    speech        the speech that is compared on: a manifest, or the recordings that are kept
    runner        every strategy in a fresh worker, measured
    daemon_baseline  what a comparison leaves for the daemon
    tuning        the work of asrd tune: an interrupted run that goes on, and the verdict
"""
