"""Compare: runs, metrics, judging, selection, report.

A file imports only from files above it, and from packages below this one.

    components    parts of a model that can be lowered by themselves (pure)
    results       the values of a comparison, and in words what each means
    manifest      NeMo manifests: lines -> clips with their text
    normalising   texts -> words to be counted, without what is only typography (pure)
    rows          the row of one strategy: words, figures, criteria, verdict (pure)
    judging       the judgement of a comparison: noise floor, criteria, a row for each strategy (pure)
    selection     the cheapest strategy that qualifies, and why others do not (pure)
    report.plots  the report's plots as SVG (pure)
    report.documents  a comparison as JSON, and back (pure)
    report.cells  figures as short texts (pure)
    report.sentences  the results in sentences (pure)
    report.table  tables for a terminal (pure)
    report.page   one comparison as an HTML page (pure)
    speech        the speech of a comparison: a manifest, or the recordings that are kept
    runner        every strategy in a fresh worker, measured
    daemon_baseline  the figures that a comparison keeps for the daemon
    tuning        the work of asrd tune: an interrupted run that goes on, and the verdict
"""
