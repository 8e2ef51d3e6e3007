-- Everything a server remembers. Tensors are files beside the database, named here by their SHA-256.

CREATE TABLE runs (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    run        TEXT NOT NULL UNIQUE,
    name       TEXT NOT NULL,
    rounds     INTEGER NOT NULL,
    plan_toml  TEXT NOT NULL,
    -- A number makes the run a rehearsal. Text, because it has 64 bits without a sign.
    seed       TEXT,
    -- The shared tensors in order: [[name, [side, ...]], ...].
    tensors    TEXT NOT NULL
) STRICT;

CREATE TABLE checkpoints (
    run                TEXT PRIMARY KEY REFERENCES runs (run),
    round              INTEGER NOT NULL,
    evaluated          INTEGER NOT NULL,
    -- NULL while the run goes on, then 'finished' or 'failed'.
    ended              TEXT CHECK (ended IN ('finished', 'failed')),
    reason             TEXT NOT NULL DEFAULT '',
    failures           INTEGER NOT NULL,
    model              TEXT NOT NULL,
    model_sha256       TEXT NOT NULL,
    optimizer          TEXT,
    -- Means, then deviations, as little-endian f64.
    standardiser       BLOB,
    model_before       TEXT,
    optimizer_before   TEXT
) STRICT;

CREATE TABLE rounds (
    run      TEXT NOT NULL REFERENCES runs (run),
    round    INTEGER NOT NULL,
    summary  TEXT NOT NULL,
    PRIMARY KEY (run, round)
) STRICT;

CREATE TABLE reports (
    run       TEXT NOT NULL REFERENCES runs (run),
    round     INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    client    TEXT NOT NULL,
    loss      REAL NOT NULL,
    accuracy  REAL,
    examples  INTEGER NOT NULL,
    seconds   REAL NOT NULL,
    PRIMARY KEY (run, round, kind, client)
) STRICT;

CREATE TABLE clients (
    run       TEXT NOT NULL REFERENCES runs (run),
    client    TEXT NOT NULL,
    accepted  INTEGER NOT NULL,
    -- Counts by reason, as JSON.
    refused   TEXT NOT NULL,
    declined  TEXT NOT NULL,
    -- Last test metrics, as JSON.
    test      TEXT,
    PRIMARY KEY (run, client)
) STRICT;
