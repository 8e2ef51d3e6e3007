//! Who decides: the plan, the coordinator, aggregation and the server around them
