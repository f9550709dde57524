"""Compare: runs, metrics, judging, selection, report.

A file imports only from files above it, and from packages below this one.

    components    which parts of a model can go down by themselves (pure)
    results       what a comparison found: its values, and in words what each means
    manifest      NeMo manifests: lines -> clips with their text
    normalising   texts -> words to be counted, without what is only typography (pure)
    judging       word edits, intervals, the noise floor, criteria, verdicts (pure)
    selection     what was measured -> the cheapest strategy that qualifies, and why others do not (pure)
    report.plots  the report's plots as SVG (pure)
    report.text   one comparison -> table, JSON, HTML (pure)
    report.page   one comparison as an HTML page (pure)
    runner        verb: every strategy in a fresh worker, measured and judged
"""
