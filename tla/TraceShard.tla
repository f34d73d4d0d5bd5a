----------------------------- MODULE TraceShard -----------------------------
(***************************************************************************)
(* Runs of the real volume core with clients that live on after they were   *)
(* superseded are behaviours of ReplicatedShard: one block, two stores,     *)
(* epochs, sessions and single commands.                                    *)
(*                                                                          *)
(* TraceData.tla, which is generated, holds Traces: sequences of records.   *)
(* A record is explained by the action of its line.  `e` is the client's    *)
(* epoch.  A command is told when its store does it, with whether the       *)
(* client has heard the answer (`h`) and then counts nothing there as        *)
(* unflushed (`c`).  What a store refuses is no event.                      *)
(*                                                                          *)
(*   action of the model   event      logged where                          *)
(*                                    (volume/src/core/test/world/shard.rs)  *)
(*   Attach                attach     metad has granted the epoch           *)
(*   Open                  opens      Command::OpenSlice                    *)
(*   (no step)             open       TraceEvent::Open, and whether the      *)
(*                                    store is suspect now                  *)
(*   ConnBreak             break      TraceEvent::ConnBreak                 *)
(*   Deliver,              W          Command::Write of a host              *)
(*   DeliverUnheard        C          a durable copy: replicas are made     *)
(*                                    equal at attach                       *)
(*                         copy       a copy to a resilver's target         *)
(*                         F          Command::Flush, for whatever purpose  *)
(*                         M          Command::Stable, if the mark went     *)
(*   Stamp                 stamp      Command::Stamp                        *)
(*   RsComplete            complete   Command::CompleteSlice                *)
(*   Propose, Join         propose,   TraceEvent::Propose, Join             *)
(*                         join                                             *)
(*   Commit                commit     metad has recorded another set        *)
(*   Learn                 learn      TraceEvent::Learn                     *)
(*   Establish or          serve      TraceEvent::Establish without         *)
(*   Reconciled, before               regions, or the first Reconciled;     *)
(*                                    with the value that is served         *)
(*   StartWrite            write      the first command of a host's write   *)
(*   AckWrite, AckFlush    ack,       Effect::Complete                      *)
(*                         flushed                                          *)
(*   (no step)             read       Effect::Complete, with the value      *)
(*   StartRs, DropRs       resilver,  TraceEvent::StartRs, DropRs           *)
(*                         drop                                             *)
(*   ClientCrash           gone       it was killed, or its device failed   *)
(*   StoreCrash, DiskLoss  crash,     the power cut, with what it left;      *)
(*                         loss       a blank disk                          *)
(*                                                                          *)
(* Everything else that a client does by itself is silent: TLC finds a      *)
(* moment that fits, between two events.  A step that needs a round trip    *)
(* of the model may be taken when its stores have answered, before the      *)
(* client says so (Ahead).  The model opens all sessions again after an     *)
(* interrupted reconcile; the code waits for what is under way, so such an  *)
(* Open is silent where the store knows the session already.                *)
(***************************************************************************)
EXTENDS ReplicatedShard, Sequences, TraceData

VARIABLES k, l       \* which trace, and its next event
tvars == <<md, bk, d, m, cl, net, g, k, l>>

Ev == Traces[k][l]
E  == Ev.e
S  == Ev.s
Is(a)    == Ev.a = a
Same     == UNCHANGED vars
Del(x)   == IF x.s \in cl[x.e].on /\ Alive(x.e) /\ ~Ev.h THEN DeliverUnheard(x) ELSE Deliver(x)
\* messages of the event's client to its store
To(ts)   == {x \in net : x.e = E /\ x.s = S /\ x.t \in ts}

-----------------------------------------------------------------------------
(* Commands *)

Flush ==
  \/ \E x \in To({"F", "RF"}) : Del(x) /\ (Ev.h /\ S \in cl[E].on => Ev.c = (S \notin cl'[E].unf))
  \/ \E x \in To({"C"}) : m[S].v = x.v /\ Del(x)
  \* about other things, or about nothing that the model counts
  \/ Same

Performed ==
  CASE Is("W")    -> \E x \in To({"W"}) : x.v = Ev.v /\ Del(x)
    [] Is("copy") -> \E x \in To({"W"}) : x.v = Ev.v /\ Del(x)
    [] Is("C")    -> \E x \in To({"C"}) : x.v = Ev.v /\ Del(x)
    [] Is("F")    -> Flush
    [] Is("M")    -> \E x \in To({"M"}) : Deliver(x) /\ ~d'[S].mark

-----------------------------------------------------------------------------
Opens ==
  IF Alive(E) /\ (S \in WS(E) \/ ~md.ver) /\ S \notin cl[E].stale
  THEN S \notin cl[E].on /\ Open(E, S)
  ELSE Same                       \* not one of its stores, or not trusted any more

Step ==
  CASE Is("attach")   -> Attach(E)
    [] Is("opens")    -> Opens
    [] Is("open")     -> (S \in WS(E) => Ev.sus = (S \in cl[E].stale)) /\ Same
    [] Is("break")    -> IF S \in cl[E].on THEN ConnBreak(E, S) ELSE Same
    [] Is("stamp")    -> Stamp(E, S) \/ Same
    [] Is("complete") -> cl[E].rs.t = S /\ RsComplete(E)
    [] Is("propose")  -> (cl[E].pend = Ev.m /\ Same) \/ Propose(E, Ev.m)
    [] Is("join")     -> cl[E].rs.t = S /\ Join(E)
    [] Is("commit")   -> (md.isr = Ev.m /\ Same) \/ (Commit(E) /\ md'.isr = Ev.m)
    [] Is("learn")    -> cl[E].pend = Ev.m /\ Learn(E)
    [] Is("serve")    -> cl[E].st = "act" /\ cl[E].cur = Ev.v /\ Same
    [] Is("write")    -> StartWrite(E) /\ cl'[E].w.v = Ev.v
    [] Is("ack")      -> AckWrite(E) /\ cl[E].w.v = Ev.v
    [] Is("flushed")  -> IF cl[E].st = "act" THEN AckFlush(E, cl[E].cur) ELSE Same
    [] Is("read")     -> cl[E].st = "act" /\ cl[E].cur = Ev.v /\ Same
    [] Is("resilver") -> StartRs(E, S)
    [] Is("drop")     -> IF cl[E].rs.t = S THEN DropRs(E) ELSE cl[E].rs = NoRs /\ Same
    [] Is("gone")     -> ClientCrash(E)
    [] Is("crash")    -> StoreCrash(S) /\ (m'[S].v = Ev.v \/ (m'[S].v = -1 /\ Ev.v = 0))
    [] Is("loss")     -> DiskLoss(S)
    [] OTHER          -> Performed

-----------------------------------------------------------------------------
(* Silent steps *)

\* An event of client e is the next of its kind among those to come.
Coming(a, e, p(_)) ==
  LET T  == Traces[k]
      at == {j \in l..Len(T) : T[j].a = a /\ T[j].e = e}
      gone == {j \in l..Len(T) : T[j].a = "gone" /\ T[j].e = e} IN
  at # {} /\ LET j == CHOOSE j \in at : \A i \in at : j <= i IN
             p(T[j]) /\ \A i \in gone : j < i

\* A command of client e is done by a store later on.
Later(a, e) == \E j \in l..Len(Traces[k]) : Traces[k][j].a = a /\ Traces[k][j].e = e

\* What takes a store from a client: what needs the store comes first.
Takes == Ev.a \in {"crash", "loss", "opens", "break", "drop", "learn", "gone"}

Ahead ==
  Takes /\ \E e \in Epochs, new \in SUBSET Stores :
             Coming("propose", e, LAMBDA x : x.m = new) /\ Propose(e, new)

Serves(e) ==
  /\ Takes \/ (E = e /\ Ev.a \in {"serve", "C", "F"})
  /\ \/ \E src \in Stores : Establish(e, src)
     \/ Reconciled(e)
     \* equal and durable: nothing is sent
     \/ \E x \in net : x.t = "C" /\ x.e = e /\ m[x.s].v = x.v /\ d[x.s].pd = {x.v} /\ Deliver(x)
     \* after an interrupted reconcile
     \/ cl[e].st = "again" /\ \E s \in Stores : m[s].se = <<e, 1>> /\ Open(e, s)
     \* the stamp is there from before
     \/ cl[e].st = "att" /\ \E s \in Stores :
          d[s].sq = cl[e].seq /\ d[s].si = cl[e].isr /\ Stamp(e, s)

Resilvers(e) ==
  /\ cl[e].rs # NoRs
  /\ \/ \E src \in Stores : (Is("copy") \/ (Takes /\ Later("copy", e))) /\ RsCopy(e, src)
     \/ RsCopied(e)
     \/ (Is("F") \/ Is("ack")) /\ RsSpared(e)
     \* what the target has already is not copied
     \/ Is("F") /\ cl[e].rs.t = S /\ \E src \in Stores : m[src].v = m[S].v /\ RsCopy(e, src)
     \/ Is("F") /\ \E x \in net : x.t = "W" /\ x.e = e /\ x.s = cl[e].rs.t
          /\ cl[e].rs.ph = "copying" /\ m[x.s].v = x.v /\ Deliver(x)
     \/ Is("F") /\ cl[e].rs.t = S /\ RsFlush(e)

Silent ==
  \/ Ahead
  \/ \E e \in Epochs : Serves(e) \/ Resilvers(e)
  \/ Ev.a \in {"W", "F"} /\ Resend(E, S)
  \/ /\ Ev.a \in {"break", "drop", "learn", "gone"} /\ (Later("W", E) \/ Later("F", E))
     /\ \E s \in Stores : Resend(E, s)
  \/ Ev.a \in {"F", "flushed", "M"} /\ StartFlush(E)
  \* one flush of the store for two
  \/ Is("F") /\ \E x \in To({"F", "RF"}) : Del(x)
  \/ (Is("M") \/ (Takes /\ Later("M", E))) /\ Stable(E)
  \* the session before this one ended before it was told
  \/ Is("opens") /\ S \in cl[E].on /\ Alive(E) /\ ConnBreak(E, S)
  \* a dead client's request arrives
  \/ Is("gone") /\ cl[E].pend # NoSet /\ Coming("commit", E, LAMBDA x : x.m = cl[E].pend) /\ Commit(E)

TInit == Init /\ k \in 1..Len(Traces) /\ l = 1
TNext == /\ l <= Len(Traces[k]) /\ k' = k
         /\ \/ l' = l + 1 /\ Step
            \/ l' = l /\ Silent
TSpec == TInit /\ [][TNext]_tvars

\* How often something happened tells no states apart.
View == <<md, d, m, cl, net, g.nv, g.est, g.ev, g.fv, g.legal, g.bad, k, l>>

\* Always true; tells the runner how far each trace was followed.
ASSUME \A i \in 1..Len(Traces) : TLCSet(i, 0)
Progress == IF l > TLCGet(k) THEN TLCSet(k, l) /\ PrintT(<<"followed", k, l - 1, Len(Traces[k])>>) ELSE TRUE
\* A trace that was followed to its end needs no second explanation.
Wanted == TLCGet(k) <= Len(Traces[k])
=============================================================================
