-- What PostgreSQL holds before the schema's first step: how many steps it has taken, and who may write.

CREATE TABLE IF NOT EXISTS schema_version (
    one      BIGINT PRIMARY KEY CHECK (one = 1),
    version  BIGINT NOT NULL
);

INSERT INTO schema_version VALUES (1, 0) ON CONFLICT DO NOTHING;

-- One row. Whoever takes the lease raises the epoch; a writer finds its own epoch here in every transaction, or writes nothing.
CREATE TABLE IF NOT EXISTS leases (
    name     TEXT PRIMARY KEY,
    holder   TEXT NOT NULL,
    epoch    BIGINT NOT NULL,
    -- Seconds since the Unix epoch, by the database's clock.
    expires  DOUBLE PRECISION NOT NULL
);
