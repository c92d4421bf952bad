//! Links between the controller and each node: delay, loss, duplicates, reordering, and windows without any.
//!
//! Every node has two paths (push and poll) of two ways each, and each of the four may fail alone: that is what
//! a one-way partition is.

use std::time::Duration;

use cic_common::time::Mono;

use super::rng::Rng;

/// Which of the two ways a controller and a node know of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The agent's QUIC connection: control stream and heartbeats.
    Push,
    /// The controller's mTLS polls.
    Poll,
}

/// Direction on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Node to controller.
    Up,
    /// Controller to node.
    Down,
}

/// How a link behaves while it is not cut. Shares are 0.0 to 1.0 of the packets.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub delay: Duration,
    pub jitter: Duration,
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
}

impl Weather {
    /// A quiet data centre: a few milliseconds, nothing lost.
    pub const CALM: Self = Self {
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(1),
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
    };
}

/// A reordered packet is held back up to this long: three heartbeats, so that it truly is overtaken.
const REORDER_MS_MAX: u64 = 3000;

/// First retransmission of a reliable packet; doubled each time. QUIC and TCP both start near 200 ms.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// Retransmissions tried; 200 ms doubled five times is past any idle timeout.
const RETRANSMITS_MAX: u32 = 5;

#[derive(Debug, Clone, Copy)]
struct Link {
    cut_until: Mono,
    storm_until: Mono,
    storm_loss: f64,
    /// How far this node is from the controller.
    distance: Duration,
}

/// When a datagram arrives: never, once or twice.
pub type Arrivals = [Option<Mono>; 2];

/// All links of the fleet, by the node's index in the world.
#[derive(Debug)]
pub struct Network {
    links: Vec<[Link; 4]>,
    weather: Weather,
    rng: Rng,
}

impl Network {
    #[must_use]
    pub fn new(weather: Weather, rng: Rng) -> Self {
        Self { links: Vec::new(), weather, rng }
    }

    /// Adds the next node, `distance` away.
    pub fn attach(&mut self, distance: Duration) {
        let link = Link { cut_until: Mono::ZERO, storm_until: Mono::ZERO, storm_loss: 0.0, distance };
        self.links.push([link; 4]);
    }

    pub fn cut(&mut self, node: usize, path: Path, way: Way, until: Mono) {
        let link = &mut self.links[node][slot(path, way)];
        link.cut_until = link.cut_until.max(until);
    }

    /// Loses `loss` of the packets until then.
    pub fn storm(&mut self, node: usize, path: Path, way: Way, loss: f64, until: Mono) {
        let link = &mut self.links[node][slot(path, way)];
        link.storm_until = until;
        link.storm_loss = loss;
    }

    /// Ends every cut and storm, and the losses of ordinary days.
    pub fn clear(&mut self) {
        self.weather = Weather { loss: 0.0, duplicate: 0.0, reorder: 0.0, ..self.weather };
        for link in self.links.iter_mut().flatten() {
            link.cut_until = Mono::ZERO;
            link.storm_until = Mono::ZERO;
        }
    }

    #[must_use]
    pub fn is_cut(&self, now: Mono, node: usize, path: Path, way: Way) -> bool {
        now < self.links[node][slot(path, way)].cut_until
    }

    /// Whether anything at all is wrong between the controller and `node`.
    #[must_use]
    pub fn is_troubled(&self, now: Mono, node: usize) -> bool {
        self.links[node].iter().any(|link| now < link.cut_until || now < link.storm_until)
    }

    /// Sends one datagram.
    pub fn datagram(&mut self, now: Mono, node: usize, path: Path, way: Way) -> Arrivals {
        if !self.passes(now, node, path, way) {
            return [None, None];
        }
        let mut arrival = now + self.transit(node, path, way);
        if self.rng.chance(self.weather.reorder) {
            arrival = arrival + self.rng.ms(0, REORDER_MS_MAX);
        }
        let copy = self.rng.chance(self.weather.duplicate).then(|| now + self.transit(node, path, way));
        [Some(arrival), copy]
    }

    /// Whether one packet sent now would arrive.
    pub fn passes(&mut self, now: Mono, node: usize, path: Path, way: Way) -> bool {
        let link = self.links[node][slot(path, way)];
        let storm = if now < link.storm_until { link.storm_loss } else { 0.0 };
        now >= link.cut_until && !self.rng.chance(self.weather.loss.max(storm))
    }

    /// Sends one packet of a reliable stream; losses cost retransmissions. None when the way is cut or so bad
    /// that no retransmission came through: the caller keeps the packet.
    pub fn reliable(&mut self, now: Mono, node: usize, path: Path, way: Way) -> Option<Mono> {
        let mut sent = now;
        let mut wait = RETRANSMIT;
        for _ in 0..RETRANSMITS_MAX {
            if self.passes(sent, node, path, way) {
                return Some(sent + self.transit(node, path, way));
            }
            if self.is_cut(now, node, path, way) {
                return None;
            }
            sent = sent + wait;
            wait *= 2;
        }
        None
    }

    fn transit(&mut self, node: usize, path: Path, way: Way) -> Duration {
        let jitter_us = u64::try_from(self.weather.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.rng.range(0, jitter_us));
        self.weather.delay + self.links[node][slot(path, way)].distance + jitter
    }
}

fn slot(path: Path, way: Way) -> usize {
    match (path, way) {
        (Path::Push, Way::Up) => 0,
        (Path::Push, Way::Down) => 1,
        (Path::Poll, Way::Up) => 2,
        (Path::Poll, Way::Down) => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Mono = Mono::from_millis(1000);
    const LATER: Mono = Mono::from_millis(5000);

    fn network(weather: Weather) -> Network {
        let mut network = Network::new(weather, Rng::new(3));
        network.attach(Duration::ZERO);
        network.attach(Duration::from_millis(40));
        network
    }

    #[test]
    fn a_cut_of_one_way_leaves_the_other_three() {
        let mut network = network(Weather::CALM);
        network.cut(0, Path::Push, Way::Up, LATER);
        assert_eq!(network.datagram(NOW, 0, Path::Push, Way::Up), [None, None]);
        assert_eq!(network.reliable(NOW, 0, Path::Push, Way::Up), None);
        for (path, way) in [(Path::Push, Way::Down), (Path::Poll, Way::Up), (Path::Poll, Way::Down)] {
            assert!(network.reliable(NOW, 0, path, way).is_some());
        }
        assert!(network.datagram(LATER, 0, Path::Push, Way::Up)[0].is_some(), "the window has ended");
        assert!(network.datagram(NOW, 1, Path::Push, Way::Up)[0].is_some(), "another node's link");
    }

    #[test]
    fn a_reliable_packet_pays_for_loss_with_time() {
        let mut network = network(Weather { loss: 0.4, ..Weather::CALM });
        let arrivals: Vec<Mono> =
            (0..100).filter_map(|_| network.reliable(NOW, 0, Path::Push, Way::Down)).collect();
        assert!(arrivals.len() > 90);
        assert!(arrivals.iter().any(|at| at.since(NOW) > RETRANSMIT));
    }

    #[test]
    fn datagrams_are_lost_doubled_and_overtaken() {
        let mut network = network(Weather { loss: 0.2, duplicate: 0.2, reorder: 0.2, ..Weather::CALM });
        let sent: Vec<Arrivals> = (0..500).map(|_| network.datagram(NOW, 0, Path::Push, Way::Up)).collect();
        assert!(sent.iter().any(|arrival| arrival[0].is_none()));
        assert!(sent.iter().any(|arrival| arrival[1].is_some()));
        assert!(sent.iter().flatten().flatten().any(|at| at.since(NOW) > Duration::from_secs(1)));
    }

    #[test]
    fn after_the_faults_nothing_is_lost() {
        let mut network = network(Weather { loss: 1.0, ..Weather::CALM });
        network.cut(1, Path::Poll, Way::Down, LATER);
        network.clear();
        assert!(network.datagram(NOW, 1, Path::Poll, Way::Down)[0].is_some());
        assert!(!network.is_troubled(NOW, 1));
    }
}
