//! The controller's store on both databases: each rule is tried on SQLite and on a real PostgreSQL server.

mod away;
mod backup;
mod lease;
mod place;
mod retention;
mod rows;
mod site;
mod sync;

/// Makes two tests of each rule.
macro_rules! on_both {
    ($($rule:path => $name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                $rule(&super::place::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                if let Some(place) = super::place::Place::postgres() {
                    $rule(&place).await;
                }
            })+
        }
    };
}

on_both! {
    crate::rows::restart => a_restart_finds_what_was_recorded_under_a_higher_term,
    crate::rows::migrate_again => migrating_again_or_at_once_changes_nothing,
    crate::rows::newer => a_database_of_a_newer_program_is_refused,
    crate::rows::repeat => a_batch_stored_twice_is_stored_once,
    crate::rows::wait => a_database_that_comes_back_gets_everything_in_order,
    crate::rows::append_only => the_event_log_is_only_appended_to,
    crate::rows::zero => a_text_with_the_character_0_is_stored_without_it,
    crate::rows::token_race => of_simultaneous_uses_of_a_token_one_succeeds,
    crate::rows::token_refusal => a_token_says_why_it_is_no_good,
    crate::lease::race => of_simultaneous_takers_one_leads,
    crate::lease::expiry => a_lease_that_is_over_is_taken_under_a_higher_term,
    crate::lease::restart => the_holder_itself_takes_a_higher_term_at_once,
    crate::lease::release => a_released_lease_is_taken_at_once,
    crate::lease::renewal => a_lease_can_be_renewed_until_another_took_it,
    crate::lease::skew => no_clock_but_the_databases_plays_a_part,
    crate::lease::fence => a_term_that_is_over_stores_nothing,
    crate::lease::writer => a_writer_whose_term_is_over_says_so_and_tells_nobody,
    crate::backup::same_rows => a_lost_database_comes_back_from_a_snapshot_row_for_row,
    crate::backup::damaged => a_damaged_snapshot_is_skipped_with_its_name_and_cause,
    crate::backup::kept => of_eleven_snapshots_ten_are_kept,
    crate::backup::not_empty => a_database_with_rows_or_a_leader_is_not_written_over,
    crate::backup::regular => the_leader_takes_a_snapshot_whenever_one_is_due,
    crate::sync::saved => a_comparison_is_stored_and_clusters_that_are_gone_are_forgotten,
    crate::retention::ages => only_what_is_too_old_is_forgotten,
    crate::retention::batches => what_is_too_old_goes_in_small_batches,
}
