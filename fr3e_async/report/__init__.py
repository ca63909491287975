"""The run's page: one HTML file about one or more run directories, and the viewer of their trees. Reads files, starts nothing.

    runs       what a run directory says: metrics, summary, groups, events, settings      timeline   who worked when
    trees      the kept trees, packed for the page                                        __main__   the command
    page       all of it, the code that makes each metric, and the assets as one file

The page itself is plain JavaScript and CSS in ``assets/``; its plots are drawn by uPlot, which lies there too.
"""
