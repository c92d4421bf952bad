//! What the driver shows. A view of a large fleet takes milliseconds, so it is drawn when somebody looks.

use std::sync::Arc;
use std::time::Duration;

use cic_common::id::Term;
use cic_common::time::{Clock, Mono};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::core::View;

/// Views are for people and scrapes: 20 a second is plenty.
const INTERVAL: Duration = Duration::from_millis(50);

/// The pause after a view is so many times as long as it took, so that views take a twentieth of the driver's time at
/// most. A thousand nodes are still shown as soon as a small fleet is.
const PAUSE_FACTOR: u32 = 19;

/// One that nobody asked for is drawn this often, so that its age tells whether the driver runs.
const AGE_MAX: Duration = Duration::from_secs(2);

/// Who looks at a driver that does not draw is shown the last view, which says how old it is. Longer than any pause.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// A view with the wall clock at its `now`, so that a reader can place its moments in the day.
#[derive(Debug, Default, Clone)]
pub struct Published {
    pub view: View,
    pub now_unix_ms: u64,
    /// The term that this controller decides under; `None`: it follows another.
    pub leads: Option<Term>,
    /// When the rows below the view were the store's; a leader's are always.
    pub rows_at: Mono,
}

/// The readers' end. Clones see the same.
#[derive(Debug, Clone)]
pub struct Views {
    drawn: watch::Receiver<Arc<Published>>,
    wanted: Arc<Notify>,
    clock: Clock,
}

impl Views {
    /// The fleet as it is, or as it was up to 50 ms ago; what was drawn last where the driver stands.
    pub async fn look(&self) -> Arc<Published> {
        let mut drawn = self.drawn.clone();
        let newest = Arc::clone(&drawn.borrow_and_update());
        if self.clock.now().since(newest.view.now) < INTERVAL && newest.now_unix_ms > 0 {
            return newest;
        }
        self.wanted.notify_one();
        // Late, or the driver has gone: the last one is what there is.
        let _ = timeout(LOOK_WITHIN, drawn.changed()).await;
        Arc::clone(&drawn.borrow())
    }

    /// The last view, without waiting: two seconds old when nobody looks, and older when the driver stands.
    #[must_use]
    pub fn last(&self) -> Arc<Published> {
        Arc::clone(&self.drawn.borrow())
    }
}

/// The driver's end.
#[derive(Debug)]
pub(crate) struct Gallery {
    drawn: watch::Sender<Arc<Published>>,
    wanted: Arc<Notify>,
    is_wanted: bool,
    drawn_at: Mono,
    /// From the last view to the next.
    pause: Duration,
}

impl Gallery {
    pub(crate) fn new(clock: Clock) -> (Self, Views) {
        let (drawn, readers) = watch::channel(Arc::default());
        let wanted = Arc::new(Notify::new());
        let views = Views { drawn: readers, wanted: Arc::clone(&wanted), clock };
        (Self { drawn, wanted, is_wanted: false, drawn_at: Mono::ZERO, pause: INTERVAL }, views)
    }

    /// Resolves when somebody looks. Cancel-safe.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    pub(crate) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// When the next view is to be drawn.
    pub(crate) fn due(&self) -> Mono {
        self.drawn_at + if self.is_wanted { self.pause } else { AGE_MAX }
    }

    /// Shows what was begun at `began` and is ready at `now`.
    pub(crate) fn show(&mut self, published: Published, began: Mono, now: Mono) {
        self.drawn.send_replace(Arc::new(published));
        (self.drawn_at, self.is_wanted) = (now, false);
        // A process that was stopped in the middle took no time over it.
        self.pause = (now.since(began) * PAUSE_FACTOR).clamp(INTERVAL, AGE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(clock: &Clock, term: u64) -> Published {
        let view = View { now: clock.now(), term: Term(term), ..View::default() };
        Published { view, now_unix_ms: clock.unix_ms(), ..Published::default() }
    }

    #[tokio::test]
    async fn who_looks_is_shown_what_is_drawn_after_the_question() {
        let clock = Clock::start();
        let (mut gallery, views) = Gallery::new(clock);
        assert_eq!(gallery.due(), Mono::ZERO + AGE_MAX, "nobody looks");
        let looking = tokio::spawn({
            let views = views.clone();
            async move { views.look().await.view.term }
        });
        gallery.wanted().await;
        gallery.want();
        assert_eq!(gallery.due(), Mono::ZERO + INTERVAL);
        let now = clock.now();
        gallery.show(published(&clock, 7), now, now);
        assert_eq!(looking.await.expect("looks"), Term(7));
        assert_eq!(gallery.due(), now + AGE_MAX, "the wish is served");
    }

    #[tokio::test]
    async fn a_driver_that_stands_leaves_its_last_view_to_be_seen() {
        let (_gallery, views) = Gallery::new(Clock::start());
        assert_eq!(views.look().await.now_unix_ms, 0);
    }

    #[test]
    fn the_pause_grows_with_the_view() {
        let clock = Clock::start();
        let (mut gallery, _views) = Gallery::new(clock);
        let now = Mono::ZERO + Duration::from_secs(9);
        gallery.show(Published::default(), Mono::ZERO + Duration::from_millis(8_990), now);
        gallery.want();
        assert_eq!(gallery.due(), now + Duration::from_millis(190));
        gallery.show(Published::default(), Mono::ZERO, now);
        gallery.want();
        assert_eq!(gallery.due(), now + AGE_MAX, "whoever looks never waits longer than who does not");
    }
}
