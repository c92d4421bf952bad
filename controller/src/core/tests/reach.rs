//! What the core makes of the ways beside a node's two paths.

use cic_common::id::OperationId;
use cic_common::wire::message::CommandOutcome;

use super::*;

#[test]
fn what_an_ssh_port_says_explains_a_silence_and_changes_no_belief() {
    let mut bench = Bench::serving(3);
    let node = bench.node(0);
    bench.silence(&node, PollFault::Timeout);
    bench.run(Duration::from_secs(10));
    let before = bench.belief(&node);
    let ssh = SshWord::Banner("SSH-2.0-OpenSSH_9.2p1".to_owned());
    bench.give(Event::Explained { node: node.clone(), ssh });
    let view = bench.fleet.view(bench.now);
    let view = view.nodes.iter().find(|view| view.node == node).expect("it is there");
    assert_eq!(Some(view.belief), before);
    assert_ne!(view.belief, Belief::Alive);
    let said = "its sshd answers (SSH-2.0-OpenSSH_9.2p1): the VM runs";
    assert!(view.why.contains(said), "{}", view.why);
    assert!(view.trail.iter().any(|(_, text)| text == said), "{:?}", view.trail);

    // Once it speaks for itself there is nothing to explain.
    bench.serve(&node, 2);
    bench.run(Duration::from_secs(12));
    let view = bench.fleet.view(bench.now);
    let view = view.nodes.iter().find(|view| view.node == node).expect("it is there");
    assert_eq!(view.belief, Belief::Alive);
    assert!(!view.why.contains("sshd"), "{}", view.why);
}

#[test]
fn an_answer_by_poll_ends_the_operation_as_the_nodes_word_does_and_a_fault_leaves_it_open() {
    let mut bench = Bench::serving(3);
    bench.stubborn.extend(bench.launched.clone());
    bench.give(Event::Deployed(deployment(2)));
    bench.run(Duration::from_secs(1));
    let open = |bench: &Bench| bench.fleet.view(bench.now).operations;
    let drain = open(&bench).into_iter().find(|one| matches!(one.kind, OperationKind::Drain { .. }));
    let Operation { id: operation, node, .. } = drain.expect("one is drained");
    let answered = |result| Event::CommandAnswered { node: node.clone(), operation, result };
    bench.give(answered(Err(PollFault::Timeout)));
    assert!(open(&bench).iter().any(|one| one.id == operation));
    bench.give(answered(Ok(CommandOutcome::Accepted)));
    assert!(!open(&bench).iter().any(|one| one.id == operation));
}

#[test]
fn a_restart_over_ssh_is_told_with_its_end() {
    let mut bench = Bench::serving(2);
    let (node, operation) = (bench.node(0), OperationId(90));
    let result = Err("exit status: 255: Permission denied".to_owned());
    bench.give(Event::RestartedBySsh { node: node.clone(), operation, result });
    bench.give(Event::RestartedBySsh { node: node.clone(), operation, result: Ok(()) });
    let told: Vec<_> = bench.notes.iter().filter(|note| note.kind == "ssh-restart").collect();
    assert_eq!(
        told.iter().map(|note| note.severity).collect::<Vec<_>>(),
        [Severity::Warning, Severity::Info]
    );
    assert!(told[0].text.contains("Permission denied"), "{}", told[0].text);
    let stranger = NodeId::new("nobody").expect("label");
    bench.give(Event::Explained { node: stranger, ssh: SshWord::Refused });
}
