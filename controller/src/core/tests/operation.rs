//! Operations over lost answers, restarts and deadlines.

use cic_common::id::OperationId;

use super::*;

fn no_answer() -> CloudFault {
    CloudFault::NoAnswer("connection reset".to_owned())
}

fn no_capacity() -> CloudFault {
    CloudFault::NoCapacity("insufficient".to_owned())
}

fn rows(bench: &Bench) -> Vec<NodeId> {
    bench.fleet.view(bench.now).nodes.into_iter().map(|node| node.node).collect()
}

#[test]
fn a_failure_after_a_lost_answer_is_not_believed_while_the_vm_may_come_to_be() {
    // Its first call was carried out, its answer lost; the second is refused: by then the quota is reached.
    let mut bench = Bench::new(0);
    bench.refusals = [no_answer(), no_capacity()].into();
    bench.launches_in_secret = true;
    bench.give(Event::Deployed(deployment(1)));
    let node = rows(&bench).pop().expect("decided");
    bench.run(Duration::from_secs(10));
    assert!(bench.terminated.is_empty(), "it is not known that there is nothing");
    bench.run(Duration::from_secs(40));
    let view = bench.fleet.view(bench.now);
    let adopted = view.nodes.iter().find(|view| view.node == node).expect("its row stays");
    assert_eq!((adopted.leaving.is_none(), adopted.cloud), (true, Cloud::Running));
    bench.serve(&node, 1);
    bench.run(Duration::from_secs(60));
    assert!(bench.terminated.iter().all(|it| *it != node) && bench.routed.contains(&node));
}

#[test]
fn what_never_came_to_be_is_forgotten_once_it_would_be_seen() {
    let mut bench = Bench::new(0);
    bench.refusals = [no_answer(), no_capacity()].into();
    bench.give(Event::Deployed(deployment(1)));
    let node = rows(&bench).pop().expect("decided");
    bench.run(Timing::default().visibility);
    assert!(rows(&bench).contains(&node));
    bench.run(Duration::from_secs(10));
    assert_eq!((rows(&bench).contains(&node), &bench.terminated[..]), (false, &[node][..]));
}

#[test]
fn a_failure_that_nothing_casts_doubt_on_is_believed_at_once() {
    let mut bench = Bench::new(0);
    bench.refusals = [no_capacity()].into();
    bench.give(Event::Deployed(deployment(1)));
    bench.run(Duration::from_secs(1));
    assert_eq!(bench.terminated.len(), 1);
}

#[test]
fn a_launch_without_an_answer_is_given_up_at_its_deadline_and_another_takes_its_place() {
    let mut bench = Bench::new(0);
    bench.refusals = (0..100).map(|_| no_answer()).collect();
    bench.give(Event::Deployed(deployment(1)));
    let node = rows(&bench).pop().expect("decided");
    bench.run(Timing::default().operation_deadline - Duration::from_secs(2));
    assert_eq!(rows(&bench), std::slice::from_ref(&node));
    bench.refusals.clear();
    bench.refusals.push_back(no_answer());
    bench.run(Duration::from_secs(200));
    let rows = rows(&bench);
    assert!(rows.len() == 1 && !rows.contains(&node), "{rows:?}");
    assert_eq!(bench.terminated, [node]);
}

#[test]
fn a_launch_whose_vm_is_listed_needs_no_other_answer() {
    let mut bench = Bench::new(0);
    bench.refusals = (0..100).map(|_| no_answer()).collect();
    bench.launches_in_secret = true;
    bench.give(Event::Deployed(deployment(1)));
    bench.run(Duration::from_secs(40));
    let view = bench.fleet.view(bench.now);
    assert!(view.operations.is_empty() && view.nodes[0].leaving.is_none(), "{:?}", view.operations);
}

#[test]
fn a_restored_launch_has_its_span_anew_however_long_no_controller_was_there() {
    let mut first = Bench::new(0);
    first.refusals = (0..100).map(|_| no_answer()).collect();
    first.give(Event::Deployed(deployment(1)));
    first.run(Duration::from_secs(500));
    let node = rows(&first).pop().expect("one");
    let refusals = (0..100).map(|_| no_answer()).collect();
    let mut second = Bench::refusing(1, first.stored(2), refusals);
    second.run(Timing::default().operation_deadline - Duration::from_secs(5));
    assert_eq!(rows(&second), std::slice::from_ref(&node));
    second.run(Duration::from_secs(10));
    let view = second.fleet.view(second.now);
    assert!(view.nodes.iter().any(|view| view.node == node && view.leaving.is_some()));
}

#[test]
fn a_restored_launch_that_is_refused_is_in_doubt_for_what_the_controller_before_asked() {
    let mut first = Bench::new(0);
    first.refusals = (0..100).map(|_| no_answer()).collect();
    first.give(Event::Deployed(deployment(1)));
    let node = rows(&first).pop().expect("one");
    let refusals = (0..20).map(|_| no_capacity()).collect();
    let mut second = Bench::refusing(1, first.stored(2), refusals);
    second.run(Duration::from_secs(15));
    assert!(second.terminated.iter().all(|it| *it != node));
    // The call of the controller before is carried out after all.
    second.instances.insert(node.clone(), InstanceState::Running);
    second.run(Duration::from_secs(5));
    second.serve(&node, 1);
    second.run(Duration::from_secs(300));
    assert!(second.routed.contains(&node) && second.instances.len() == 1, "{:?}", second.instances);
}

#[test]
fn a_second_answer_to_one_operation_changes_nothing() {
    let mut bench = Bench::serving(2);
    let before = bench.fleet.view(bench.now);
    for id in 1..=4 {
        for result in [Ok(()), Err(no_answer()), Err(no_capacity())] {
            bench.give(Event::Performed { operation: OperationId(id), result });
        }
    }
    assert_eq!(bench.fleet.view(bench.now).nodes, before.nodes);
}

#[test]
fn a_launch_carries_the_price_limit_of_its_deployment_as_it_was_when_it_was_recorded() {
    let limit = UsdPerHour::try_from(2.5).ok();
    let mut fleet = Fleet::new(Timing::default(), BrakeRules::default());
    let mut out = Vec::new();
    fleet.step(Mono::ZERO, Event::Restored(Restored::default()), &mut out);
    let priced = Deployment { price_limit_usd_per_hour: limit, ..deployment(1) };
    fleet.step(Mono::ZERO, Event::Deployed(priced), &mut out);
    let listed = Event::Listed { provider: "local".to_owned(), result: Ok(Vec::new()) };
    fleet.step(Mono::ZERO, listed, &mut out);
    let recorded = out.iter().find_map(|a| if let Action::Record(op) = a { Some(op.clone()) } else { None });
    let recorded = recorded.expect("a launch was decided");
    assert_eq!(recorded.price_limit_usd_per_hour, limit);
    out.clear();
    fleet.step(Mono::ZERO, Event::Deployed(deployment(1)), &mut out);
    fleet.step(Mono::ZERO, Event::Recorded { operation: recorded.id }, &mut out);
    let asked = out
        .iter()
        .find_map(|a| if let Action::Launch { price_limit, .. } = a { Some(*price_limit) } else { None });
    assert_eq!(asked, Some(limit));
}
