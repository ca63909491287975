"""The command ``fr3e``: its words, its options, and the one place that prints errors. What a command does lives in other rooms.

    main     the list of commands, ``run``, exit codes        runs        audit, replay, replay_step, export, report: of a run that is there
    train    train, config                                    sizing      plan, simulate
    evaluate evaluate                                         verify      verify
    words    what they share: key=value words, paths, output

One grammar: settings and named values are ``key=value``, switches and what has a default are ``--options``, run directories are bare words.
Functions import what they need when they are called, so that ``fr3e --help`` loads click alone.
"""
