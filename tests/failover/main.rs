//! Two real controllers on a real PostgreSQL: the leader is killed, stopped, cut off and told to go, and the other leads; and
//! all of them are gone for minutes.

mod checks;
mod outage;
mod strikes;
