//! Who answers: the participant, and the agent that keeps it connected
