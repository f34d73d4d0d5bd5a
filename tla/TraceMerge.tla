----------------------------- MODULE TraceMerge -----------------------------
(***************************************************************************)
(* Runs of the real store core, with power cuts, are behaviours of           *)
(* MergeForward: two blocks of one extent, all generations.                  *)
(*                                                                          *)
(* TraceData.tla, which is generated, holds Traces: sequences of records.   *)
(* A record is explained by the action of its line; the actions of the last  *)
(* lines are silent: TLC finds a moment that fits.                           *)
(*                                                                          *)
(*   action of the model   event      logged where                          *)
(*                                    (store/src/core/test/record.rs)        *)
(*   StartWrite            write      Effect::WriteData, with the extent     *)
(*   LandWrite             land       the end of that device operation       *)
(*   Zero                  zero       the answer to Command::Zero            *)
(*   (no step)             read       the answer to Command::Read, with the  *)
(*                                    write that it returned                 *)
(*   StartFlush,           flush,     Effect::Flush, and its end; where       *)
(*   FlushDevice           durable    nothing is in the device's cache: silent *)
(*   WriteJournal          record     Effect::WriteMeta in the journal, if it *)
(*                                    is there in the end                    *)
(*   (no step)             recorded   its end                                *)
(*   (no step)             flushed    the answer to Command::Flush: of what  *)
(*                                    had ended before, the last is durable  *)
(*   Begin, Drop           begin,     Command::BeginGeneration and           *)
(*                         drop       DropGeneration, one at a time          *)
(*   (no step)             seen       Slice::generations and Leaf::get of    *)
(*                                    all generations, if they have changed  *)
(*   Start, Switch         checkpoint,  Core::checkpoint                     *)
(*                         switch                                            *)
(*   Crash                 crash      the power cut, or the kill of the      *)
(*                                    process, and Effect::Opened: what all  *)
(*                                    generations read                       *)
(*   ChangeDone, StartCopy, LandCopy, MergeStep: silent, and seen at once,   *)
(*   FlushDone, MergeDone, CaptureGens, CaptureCells, Release: silent        *)
(***************************************************************************)
EXTENDS MergeForward, TraceData

VARIABLES
  tr, at,      \* which trace, and its next event
  kept         \* the record that is being written will be there
tvars == <<mem, dev, log, img, open, fl, ck, mg, ops, rd, run, h, g, tr, at, kept>>

TraceExtents == UNION {{Traces[i][j].x : j \in {j \in 1..Len(Traces[i]) : Traces[i][j].a = "write"}} : i \in 1..Len(Traces)}
Ev == Traces[tr][at]
Nothing == UNCHANGED vars

Map == [j \in Gens |-> <<mem.cell[j].ph, mem.cell[j].st[1], mem.cell[j].st[2]>>]

Step ==
  CASE Ev.a = "write"   -> StartWrite(Ev.t) /\ ops'[Ev.t].n = Ev.n /\ ops'[Ev.t].x = Ev.x
    [] Ev.a = "land"    -> ops[Ev.t].n = Ev.n /\ LandWrite(Ev.t)
    [] Ev.a = "zero"    -> IF Source(mem, mem.head, Ev.t) # 0 THEN Zero(Ev.t) /\ g'.nw = Ev.n
                           ELSE g' = [g EXCEPT !.nw = Ev.n] /\ UNCHANGED <<mem, dev, log, img, open, fl, ck, mg, ops, rd, run, h>>
    [] Ev.a = "read"    -> Nothing /\ (Ev.g \in All(mem) => Read(mem, dev, Ev.g, Ev.t) = Ev.v)
    [] Ev.a = "flushed" -> Nothing /\ \A j \in All(mem), b \in Blocks : Cardinality({n \in h[j][b].vs : n <= Ev.m[b]}) <= 1
    [] Ev.a = "begin"   -> mem.head + 1 = Ev.g /\ Begin
    [] Ev.a = "drop"    -> Drop(Ev.g)
    [] Ev.a = "flush"   -> StartFlush
    [] Ev.a = "durable" -> FlushDevice
    [] Ev.a = "record"  -> IF log.lane # <<>> /\ kept' THEN WriteJournal ELSE Nothing
    [] Ev.a = "recorded" -> kept /\ Nothing
    [] Ev.a = "seen"    -> Nothing /\ mem.head = Ev.g /\ mem.snaps = Ev.m /\ Map = Ev.c
    [] Ev.a = "checkpoint" -> Start
    [] Ev.a = "switch"  -> Switch
    [] Ev.a = "crash"   -> Crash /\ \A v \in Ev.m : v[1] \in All(mem') /\ Read(mem', dev', v[1], v[2]) = v[3]

\* Where nothing is in the device's cache no device is asked.
NoOpen == [ch |-> NoCh, freed |-> {}]
Silent ==
  \/ (dev = Flushed /\ open # NoOpen /\ StartFlush) \/ (dev = Flushed /\ FlushDevice)
  \/ FlushDone \/ MergeDone \/ CaptureGens \/ CaptureCells
  \/ ChangeDone \/ StartCopy \/ LandCopy \/ MergeStep
  \/ (Ev.a = "write" /\ Release(Ev.x))
  \/ (Ev.a = "crash" /\ Switch)

TInit == Init /\ tr \in 1..Len(Traces) /\ at = 1 /\ kept = TRUE
TNext == /\ at <= Len(Traces[tr]) /\ tr' = tr
         /\ \/ at' = at + 1 /\ kept' \in (IF Ev.a = "record" THEN BOOLEAN ELSE {kept}) /\ Step
            \/ at' = at /\ kept' = kept /\ Silent
TSpec == TInit /\ [][TNext]_tvars

\* Always true; tells the runner how far each trace was followed.
ASSUME \A i \in 1..Len(Traces) : TLCSet(i, 0)
Progress == IF at > TLCGet(tr) THEN TLCSet(tr, at) /\ PrintT(<<"followed", tr, at - 1, Len(Traces[tr])>>) ELSE TRUE
\* A trace that was followed to its end needs no second explanation.
Wanted == TLCGet(tr) <= Len(Traces[tr])
=============================================================================
