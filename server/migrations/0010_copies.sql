-- What a site may have booked without anybody being shown it, and whether these rows are a backup.

-- Rounds of runs with secret cohorts that were committed while the site was connected, or had been since the run's round before: the
-- same for every such site, drawn or not.
ALTER TABLE site_ledgers ADD COLUMN secret_rounds INTEGER NOT NULL DEFAULT 0;

-- A row here says that a backup was made of these rows: no server works with them before what was released since is charged.
CREATE TABLE backup_mark (
    one  INTEGER PRIMARY KEY CHECK (one = 1)
) STRICT;
