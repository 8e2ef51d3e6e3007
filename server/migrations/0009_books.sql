-- What the database and the audit log know of each other, and models that are paid for and not yet published.

-- Counts the transactions that have written anything. Every line of an audit log names the number of its moment: a database
-- with a smaller one was rolled back.
CREATE TABLE state_version (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    version  INTEGER NOT NULL
) STRICT;

-- How far each audit log was on disk when something was last written here: a log that ends before it was cut.
CREATE TABLE audit_heads (
    -- The file's name.
    log      TEXT PRIMARY KEY,
    records  INTEGER NOT NULL,
    -- The hash of the last of these records.
    head     TEXT NOT NULL
) STRICT;

-- Files of models that nobody can read yet: each is encrypted under a key that stands here alone, so that it becomes readable with
-- the transaction that pays for it. The row goes when the file has its name.
CREATE TABLE unpublished (
    -- The file's name once it is published, and the name of the encrypted one.
    blob    TEXT PRIMARY KEY,
    sealed  TEXT NOT NULL,
    key     TEXT NOT NULL
) STRICT;

-- Releases that were charged whenever this state was brought back from a backup.
CREATE TABLE restored (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    -- All of them. It stays: a population that was not charged then, because the state knew nothing of it, is charged as many before
    -- its first run.
    lost_releases   INTEGER NOT NULL,
    -- Models of as many may lie in the storage. 0 when a server has started, since they are removed then.
    unknown_models  INTEGER NOT NULL
) STRICT;

-- Over the numbers that bound how often a client takes part: a row that a disk changed would let it take part once more.
ALTER TABLE clients ADD COLUMN checksum TEXT;
