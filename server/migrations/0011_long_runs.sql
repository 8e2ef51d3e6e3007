-- What makes a commit cost the same however many models a run has left, and the noise that was found for a plan.

CREATE INDEX models_of_blob ON models (blob);
CREATE INDEX models_kept ON models (run, round) WHERE kept = 1;

-- The noise multiplier that was calibrated when the plan was accepted, with a checksum over it and the plan; NULL where the plan names its
-- noise or has none, and for a run of an earlier release whose noise was not calibrated again yet.
ALTER TABLE runs ADD COLUMN calibrated TEXT;
