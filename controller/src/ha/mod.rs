//! Which of the controllers leads.
//!
//! ```text
//! database <--ask-- Keeper (plays LeaseProtocol) --Turn--> driver
//!                      |  ^
//!                 Post v  | Order
//!                   Leadership --> api (redirects, /healthz/leader), driver (may it act now?)
//! ```
//! [`LeaseProtocol`] decides, purely; the keeper asks the database and reads the rows. Every controller runs the whole
//! program: a standby hears and polls the nodes, and follows the rows, so that it knows everything when its turn comes.

mod keeper;
mod leadership;
mod lease;
mod turn;

pub use keeper::{Keeper, KeeperSpec};
pub use leadership::{Leadership, NotReleased, Post};
pub use lease::{Answer, LeaseAction, LeaseEvent, LeaseProtocol, LeaseTiming, Request, Role};
pub use turn::{Reign, Turn, TurnGiver, Turns};
