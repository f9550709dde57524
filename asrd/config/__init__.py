"""Settings from defaults, file, environment and flags; voice commands; faults to rehearse.

A file imports only from files above it, and from packages below this one.

    faults          trouble that a user can rehearse: what is asked for, and how a worker then fails
    legacy          older spellings of the precision, folded into strategy (pure)
    misnomers       what a wrong setting, table or line of TOML was meant to be (pure)
    conversion      a setting as it was written -> its value, or a complaint that helps
    proposals       a line or variable that a hint proposes, tried before it is written (pure)
    amounts         amounts in settings: a span of unused time, a size of memory (pure)
    voice_commands  the table of voice commands: phrases, and what each does (pure)
    settings        frozen settings <- defaults < TOML < ASRD_* < flags
    loading         settings from defaults, the TOML file, ASRD_* variables and flags, in this order
"""
