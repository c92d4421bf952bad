//! Two real controllers on a real PostgreSQL: the leader is killed, stopped, cut off and told to go, and the other leads.

mod checks;
mod strikes;
