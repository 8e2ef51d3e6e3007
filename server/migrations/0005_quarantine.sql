-- Sites that get no task for as long as their row stands.

CREATE TABLE quarantines (
    site    TEXT PRIMARY KEY,
    -- Seconds since the Unix epoch.
    since   INTEGER NOT NULL,
    reason  TEXT NOT NULL
) STRICT;
