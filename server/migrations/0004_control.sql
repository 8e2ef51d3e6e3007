-- What an operator wants of a run, an end that an operator brought about, and every model that was ever released.

ALTER TABLE runs ADD COLUMN wish TEXT NOT NULL DEFAULT 'resume' CHECK (wish IN ('resume', 'pause', 'stop'));

-- The table is made anew because `ended` may be 'stopped' now.
CREATE TABLE checkpoints_next (
    run                TEXT PRIMARY KEY REFERENCES runs (run),
    round              INTEGER NOT NULL,
    evaluated          INTEGER NOT NULL,
    -- NULL while the run goes on.
    ended              TEXT CHECK (ended IN ('finished', 'failed', 'exhausted', 'stopped')),
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
           optimizer_before, norm_max, releases, statement, noise
    FROM checkpoints;
DROP TABLE checkpoints;
ALTER TABLE checkpoints_next RENAME TO checkpoints;

CREATE TABLE models (
    run        TEXT NOT NULL REFERENCES runs (run),
    -- The round that made it; 0 for the first model.
    round      INTEGER NOT NULL,
    -- The file, and the SHA-256 of the parameters in it.
    blob       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    -- As in `checkpoints`, of this model.
    statement  TEXT,
    -- 0 once the file was given up.
    kept       INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (run, round)
) STRICT;

INSERT INTO models (run, round, blob, sha256, statement)
    SELECT run, round, model, model_sha256, statement FROM checkpoints;
