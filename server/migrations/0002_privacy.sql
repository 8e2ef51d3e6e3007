-- What privacy needs: a ledger for each population, releases a client is part of, a run that ends for want of budget.

-- Append-only: a row is never changed and never removed, whoever asks. The triggers that see to it stand beside this file, one file
-- for each kind of database.
CREATE TABLE ledger (
    population  TEXT NOT NULL,
    sequence    INTEGER NOT NULL,
    previous    TEXT NOT NULL,
    record      TEXT NOT NULL,
    hash        TEXT NOT NULL,
    PRIMARY KEY (population, sequence)
) STRICT;

ALTER TABLE clients ADD COLUMN releases INTEGER NOT NULL DEFAULT 0;
ALTER TABLE clients ADD COLUMN released_last INTEGER NOT NULL DEFAULT 0;

-- The table is made anew because `ended` may be 'exhausted' now.
CREATE TABLE checkpoints_next (
    run                TEXT PRIMARY KEY REFERENCES runs (run),
    round              INTEGER NOT NULL,
    evaluated          INTEGER NOT NULL,
    -- NULL while the run goes on.
    ended              TEXT CHECK (ended IN ('finished', 'failed', 'exhausted')),
    reason             TEXT NOT NULL DEFAULT '',
    failures           INTEGER NOT NULL,
    model              TEXT NOT NULL,
    model_sha256       TEXT NOT NULL,
    optimizer          TEXT,
    -- Means, then deviations, as little-endian f64.
    standardiser       BLOB,
    model_before       TEXT,
    optimizer_before   TEXT,
    -- The clipping norm of the next round, where it follows the updates.
    norm_max           REAL,
    releases           INTEGER NOT NULL DEFAULT 0,
    -- What may be said about the model's privacy, as JSON; NULL for a run that promises none.
    statement          TEXT,
    -- The file with the noise that later rounds take back, where noise is correlated.
    noise              TEXT
) STRICT;

INSERT INTO checkpoints_next
    SELECT run, round, evaluated, ended, reason, failures, model, model_sha256, optimizer, standardiser, model_before,
           optimizer_before, NULL, 0, NULL, NULL
    FROM checkpoints;
DROP TABLE checkpoints;
ALTER TABLE checkpoints_next RENAME TO checkpoints;
