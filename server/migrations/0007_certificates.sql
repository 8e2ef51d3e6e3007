-- Every certificate that the issuing key has made for a site, for the list of those that are void.

CREATE TABLE certificates (
    -- In hexadecimal digits.
    serial   TEXT PRIMARY KEY,
    site     TEXT NOT NULL,
    -- Seconds since the Unix epoch.
    issued   INTEGER NOT NULL,
    expires  INTEGER NOT NULL
) STRICT;
