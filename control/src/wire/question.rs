//! Questions and answers.

use super::Decoded;
use super::command::{get_command, get_new_volume, put_command, put_new_volume};
use super::reply::{get_refusal, get_reply, put_refusal, put_reply};
use super::report::{get_report, put_report};
use super::view;
use super::words::{get_member, get_text, get_texts, len, put_member, put_texts};
use crate::api::{Answer, AttachmentDesire, Filter, Question, Resilvers, SliceDesire, Versioned};
use crate::core::HostId;
use capnp::struct_list;
use capnp::traits::OwnedStruct;
use shardmap::units::ServerId;
use ubs_capnp::control_capnp as wire;

pub(crate) fn put_question(question: &Question, mut to: wire::question::Builder<'_>) {
    match question {
        Question::Command {
            client,
            sequence,
            command,
        } => {
            put_command(*client, *sequence, command, to.init_command());
        }
        Question::MemberStatus => to.set_member_status(()),
        Question::Cluster => to.set_cluster(()),
        Question::Servers(filter) => put_filter(filter, to.init_servers()),
        Question::Stores(filter) => put_filter(filter, to.init_stores()),
        Question::Hosts(filter) => put_filter(filter, to.init_hosts()),
        Question::Volumes(filter) => put_filter(filter, to.init_volumes()),
        Question::Resilvers(filter) => put_filter(filter, to.init_resilvers()),
        Question::Snapshots(filter) => put_filter(filter, to.init_snapshots()),
        Question::Plan(new) => put_new_volume(new, to.init_plan()),
        Question::Fsck => to.set_fsck(()),
        Question::Events { after, wait } => {
            let mut to = to.init_events();
            to.set_after(*after);
            to.set_wait(*wait);
        }
        Question::WatchSlices { server, after } => {
            let mut to = to.init_watch_slices();
            to.set_server(server.0);
            to.set_after(*after);
        }
        Question::WatchAttachments { host, after } => {
            let mut to = to.init_watch_attachments();
            to.set_host(host.0);
            to.set_after(*after);
        }
        Question::Report(report) => put_report(report, to.init_report()),
    }
}

pub(crate) fn get_question(from: wire::question::Reader<'_>) -> Decoded<Question> {
    use wire::question::Which;
    Ok(match from.which()? {
        Which::Command(c) => {
            let (client, sequence, command) = get_command(c?)?;
            Question::Command {
                client,
                sequence,
                command,
            }
        }
        Which::MemberStatus(()) => Question::MemberStatus,
        Which::Cluster(()) => Question::Cluster,
        Which::Servers(f) => Question::Servers(get_filter(f?)?),
        Which::Stores(f) => Question::Stores(get_filter(f?)?),
        Which::Hosts(f) => Question::Hosts(get_filter(f?)?),
        Which::Volumes(f) => Question::Volumes(get_filter(f?)?),
        Which::Resilvers(f) => Question::Resilvers(get_filter(f?)?),
        Which::Snapshots(f) => Question::Snapshots(get_filter(f?)?),
        Which::Plan(new) => Question::Plan(get_new_volume(new?)?),
        Which::Fsck(()) => Question::Fsck,
        Which::Events(e) => Question::Events {
            after: e.get_after(),
            wait: e.get_wait(),
        },
        Which::WatchSlices(w) => Question::WatchSlices {
            server: ServerId(w.get_server()),
            after: w.get_after(),
        },
        Which::WatchAttachments(w) => Question::WatchAttachments {
            host: HostId(w.get_host()),
            after: w.get_after(),
        },
        Which::Report(r) => Question::Report(get_report(r?)?),
    })
}

fn put_filter(filter: &Filter, mut to: wire::filter::Builder<'_>) {
    to.set_name(&filter.name);
    to.set_version(filter.version);
}

fn get_filter(from: wire::filter::Reader<'_>) -> Decoded<Filter> {
    Ok(Filter {
        name: get_text(from.get_name())?,
        version: from.get_version(),
    })
}

fn put_list<T, O: OwnedStruct>(
    items: &[T],
    mut to: struct_list::Builder<'_, O>,
    put: impl for<'a> Fn(&T, O::Builder<'a>),
) {
    for (i, item) in (0..).zip(items) {
        put(item, to.reborrow().get(i));
    }
}

fn get_list<T, O: OwnedStruct>(
    from: struct_list::Reader<'_, O>,
    get: impl for<'a> Fn(O::Reader<'a>) -> Decoded<T>,
) -> Decoded<Vec<T>> {
    from.iter().map(get).collect()
}

pub(crate) fn put_answer(answer: &Answer, mut to: wire::answer::Builder<'_>) {
    match answer {
        Answer::NotLeader(leader) => {
            let mut to = to.init_not_leader();
            to.set_known(leader.is_some());
            if let Some(leader) = leader {
                put_member(leader, to.init_leader());
            }
        }
        Answer::Unavailable(sentence) => to.set_unavailable(sentence),
        Answer::Refused(refusal) => put_refusal(refusal, to.init_refused()),
        Answer::Command { index, reply } => {
            let mut to = to.init_command();
            to.set_index(*index);
            put_reply(reply, to.init_reply());
        }
        Answer::MemberStatus(s) => view::put_member_status(s, to.init_member_status()),
        Answer::Cluster(c) => view::put_cluster(c, to.init_cluster()),
        Answer::Plan(p) => view::put_plan(p, to.init_plan()),
        Answer::Fsck(found) => put_texts(found, to.init_fsck(len(found.len()))),
        Answer::Events(events) => {
            put_list(events, to.init_events(len(events.len())), view::put_event);
        }
        Answer::Reported { known } => to.set_reported(*known),
        Answer::Slices(d) => {
            let mut to = to.init_slices();
            to.set_index(d.index);
            let slices = to.reborrow().init_slices(len(d.slices.len()));
            put_list(&d.slices, slices, view::put_desired_slice);
            let maintenance = to.reborrow().init_maintenance(len(d.maintenance.len()));
            put_list(&d.maintenance, maintenance, view::put_maintenance);
            put_texts(&d.host_nqns, to.init_host_nqns(len(d.host_nqns.len())));
        }
        Answer::Attachments(d) => {
            let mut to = to.init_attachments();
            to.set_index(d.index);
            let list = to.init_list(len(d.volumes.len()));
            put_list(&d.volumes, list, view::put_desired_attachment);
        }
        Answer::Servers(_)
        | Answer::Stores(_)
        | Answer::Hosts(_)
        | Answer::Volumes(_)
        | Answer::Snapshots(_)
        | Answer::Resilvers(_) => put_listing(answer, to),
    }
}

fn put_listing(answer: &Answer, to: wire::answer::Builder<'_>) {
    match answer {
        Answer::Servers(v) => {
            let mut to = to.init_servers();
            to.set_version(v.version);
            put_list(
                &v.list,
                to.init_list(len(v.list.len())),
                view::put_server_view,
            );
        }
        Answer::Stores(v) => {
            let mut to = to.init_stores();
            to.set_version(v.version);
            put_list(
                &v.list,
                to.init_list(len(v.list.len())),
                view::put_store_view,
            );
        }
        Answer::Hosts(v) => {
            let mut to = to.init_hosts();
            to.set_version(v.version);
            put_list(
                &v.list,
                to.init_list(len(v.list.len())),
                view::put_host_view,
            );
        }
        Answer::Volumes(v) => {
            let mut to = to.init_volumes();
            to.set_version(v.version);
            put_list(
                &v.list,
                to.init_list(len(v.list.len())),
                view::put_volume_view,
            );
        }
        Answer::Snapshots(v) => {
            let mut to = to.init_snapshots();
            to.set_version(v.version);
            put_list(
                &v.list,
                to.init_list(len(v.list.len())),
                view::put_snapshot_view,
            );
        }
        Answer::Resilvers(r) => {
            let mut to = to.init_resilvers();
            to.set_version(r.version);
            let running = to.reborrow().init_running(len(r.running.len()));
            put_list(&r.running, running, view::put_resilver_view);
            put_list(
                &r.history,
                to.init_history(len(r.history.len())),
                view::put_resilver_view,
            );
        }
        Answer::NotLeader(_)
        | Answer::Unavailable(_)
        | Answer::Refused(_)
        | Answer::Command { .. }
        | Answer::MemberStatus(_)
        | Answer::Cluster(_)
        | Answer::Plan(_)
        | Answer::Fsck(_)
        | Answer::Events(_)
        | Answer::Slices(_)
        | Answer::Attachments(_)
        | Answer::Reported { .. } => unreachable!("put by the caller"),
    }
}

pub(crate) fn get_answer(from: wire::answer::Reader<'_>) -> Decoded<Answer> {
    use wire::answer::Which;
    Ok(match from.which()? {
        Which::NotLeader(n) => Answer::NotLeader(if n.get_known() {
            Some(get_member(n.get_leader()?)?)
        } else {
            None
        }),
        Which::Unavailable(sentence) => Answer::Unavailable(get_text(sentence)?),
        Which::Refused(r) => Answer::Refused(get_refusal(r?)?),
        Which::Command(c) => Answer::Command {
            index: c.get_index(),
            reply: get_reply(c.get_reply()?)?,
        },
        Which::MemberStatus(s) => Answer::MemberStatus(view::get_member_status(s?)?),
        Which::Cluster(c) => Answer::Cluster(view::get_cluster(c?)?),
        Which::Servers(v) => Answer::Servers(Versioned {
            version: v.get_version(),
            list: get_list(v.get_list()?, view::get_server_view)?,
        }),
        Which::Stores(v) => Answer::Stores(Versioned {
            version: v.get_version(),
            list: get_list(v.get_list()?, view::get_store_view)?,
        }),
        Which::Hosts(v) => Answer::Hosts(Versioned {
            version: v.get_version(),
            list: get_list(v.get_list()?, view::get_host_view)?,
        }),
        Which::Volumes(v) => Answer::Volumes(Versioned {
            version: v.get_version(),
            list: get_list(v.get_list()?, view::get_volume_view)?,
        }),
        Which::Snapshots(v) => Answer::Snapshots(Versioned {
            version: v.get_version(),
            list: get_list(v.get_list()?, view::get_snapshot_view)?,
        }),
        Which::Resilvers(r) => Answer::Resilvers(Resilvers {
            version: r.get_version(),
            running: get_list(r.get_running()?, view::get_resilver_view)?,
            history: get_list(r.get_history()?, view::get_resilver_view)?,
        }),
        Which::Plan(p) => Answer::Plan(view::get_plan(p?)?),
        Which::Fsck(found) => Answer::Fsck(get_texts(found?)?),
        Which::Events(e) => Answer::Events(get_list(e?, view::get_event)?),
        Which::Slices(d) => Answer::Slices(SliceDesire {
            index: d.get_index(),
            slices: get_list(d.get_slices()?, view::get_desired_slice)?,
            host_nqns: get_texts(d.get_host_nqns()?)?,
            maintenance: get_list(d.get_maintenance()?, view::get_maintenance)?,
        }),
        Which::Attachments(d) => Answer::Attachments(AttachmentDesire {
            index: d.get_index(),
            volumes: get_list(d.get_list()?, view::get_desired_attachment)?,
        }),
        Which::Reported(known) => Answer::Reported { known },
    })
}
