/*
 * The handoff protocol (kvtransfer/README.md, Rules), without code: one page of a decode rank that
 * goes through N landings, a prefill worker that writes W times into each, a router that reserves
 * and cancels, and a network that does what it likes.
 *
 * Messages are bits that are set when they are sent, and stay: whoever receives one may do so at any
 * later time, after others, more than once, or never before all else is over. So loss, delay,
 * reordering and duplication need no code of their own. A process that does not move is stopped,
 * until it moves. A write is under way from its post until it lands, whatever has happened since:
 * the memory it goes to can not refuse it. A lease is over for the source no later than for the
 * target, as it counts from before it was asked for; but between the look at the lease and the post
 * anything may happen.
 *
 * Crashes, breaks and cancels are counted, so every run ends, and what has to come about in the end
 * is asserted where nothing can move any more: no leak, and exactly one end of each landing.
 *
 * Each BREAK_... switches one rule off; spin has to find a violation then (model.py).
 */
#ifndef N
#define N 2
#endif
#ifndef W
#define W 1
#endif
#define EPOCHS (N + 1) /* of arrays: 0 is no epoch */

mtype = { FREE, RESERVED, LANDING, READY, QUARANTINED };

/* The target. */
mtype page = FREE;
byte owner;            /* epoch of the landing that has the page; 0: none */
byte peer;             /* incarnation that holds its lease; 0: none */
bool expired[EPOCHS];  /* its lease is over, for the source too */
byte ends[EPOCHS];
byte landed[EPOCHS];
bool damaged[EPOCHS];

/* The source. */
bool alive = true;
byte incarnation = 1;
byte runs[EPOCHS];     /* that began */
byte posted[EPOCHS];
bool broken[EPOCHS];   /* its link broke with writes under way */
byte in_flight[EPOCHS];
byte stray[EPOCHS];    /* under way without a link: nobody can wait for it */

/* Messages. */
bool run_sent[EPOCHS], stop_sent[EPOCHS];
byte lease_sent[EPOCHS];          /* by this incarnation */
bool granted[EPOCHS], denied[EPOCHS];
bool done_sent[EPOCHS], accepted[EPOCHS], refused[EPOCHS];
bool quiesced_sent[EPOCHS], broken_sent[EPOCHS], acknowledged[EPOCHS];

/* What may go wrong, how often. */
#ifndef CRASHES
#define CRASHES 1 /* of the source, which comes back each time */
#endif
#ifndef TARGET_CRASHES
#define TARGET_CRASHES 1
#endif
#ifndef BREAKS
#define BREAKS 1 /* of all links */
#endif
#ifndef DAMAGES
#define DAMAGES 1 /* of a write */
#endif
#ifndef CANCELS
#define CANCELS 1
#endif
#ifndef REPEATS
#define REPEATS 0 /* of a Run call that is over */
#endif
#ifndef ELSEWHERE
#define ELSEWHERE 1 /* the source is on another host */
#endif
byte crashes = CRASHES, restarts = CRASHES, target_crashes = TARGET_CRASHES, breaks = BREAKS;
byte damages = DAMAGES, cancels = CANCELS;

#define DEAD(i) (!alive || incarnation != (i))

inline end_landing(e) { ends[e]++; assert(ends[e] == 1) }
inline set_free() { page = FREE; owner = 0; peer = 0 }

/* The one promise that the rest is for. */
inline land(e)
{
    assert(owner == e && (page == LANDING || page == QUARANTINED));
    landed[e]++
}

/* What was on its way from this incarnation is dropped before it arrives. */
inline cut_off()
{
    d_step {
        i = 1;
        do
        :: i < EPOCHS ->
            stray[i] = 0;
            if
            :: in_flight[i] > 0 -> in_flight[i] = 0; broken[i] = true
            :: else
            fi;
            i++
        :: else -> break
        od
    }
}

/* Every connection of it is closed here: who finds out posts nothing more over it. */
inline cut_all()
{
    d_step {
        i = 1;
        do
        :: i < EPOCHS ->
            stray[i] = 0;
            in_flight[i] = 0;
            broken[i] = broken[i] || runs[i] > 0;
            i++
        :: else -> break
        od
    }
}

/* ---- router */

#ifdef BREAK_EPOCH_REUSE
#define NEXT(e) 1
#else
#define NEXT(e) e
#endif

active proctype router()
{
    byte e = 1;
    do
    :: atomic { e <= N && page == FREE ->
        page = RESERVED; owner = NEXT(e);
        if
        :: run_sent[NEXT(e)] = true
        :: skip /* it never gets there, or the router died */
        fi;
        e++ }
    :: e > N -> break
    od
}

active proctype canceller()
{
    do
    :: atomic { cancels > 0 && page == RESERVED ->
        cancels--; stop_sent[owner] = true; end_landing(owner); set_free() }
    :: atomic { cancels > 0 && page == LANDING ->
        cancels--; stop_sent[owner] = true; end_landing(owner);
#ifdef BREAK_FREE_ON_CANCEL
        set_free() }
#else
        page = QUARANTINED }
#endif
#ifdef BREAK_END_TWICE
    :: atomic { cancels > 0 && page == QUARANTINED -> cancels--; end_landing(owner) }
#endif
    :: cancels == 0 -> break
    :: cancels > 0 -> break /* or not at all */
    od
}

/* ---- target: whatever may happen to one landing */

#ifdef BREAK_OLD_EPOCH
#define OWNS(e) (owner > 0)
#else
#define OWNS(e) (owner == e)
#endif

proctype target(byte e)
{
    byte i;
end:
    do
    /* the first lease */
    :: atomic { lease_sent[e] > 0 && !granted[e] && !denied[e] && owner == e && page == RESERVED ->
        page = LANDING; peer = lease_sent[e]; granted[e] = true }
    /* one more of the same incarnation */
    :: atomic { lease_sent[e] > 0 && !granted[e] && !denied[e] && owner == e &&
                peer == lease_sent[e] &&
#ifdef BREAK_LEASE_AFTER_DONE
                (page == LANDING || page == READY) ->
#else
                page == LANDING ->
#endif
        granted[e] = true }
    :: atomic { lease_sent[e] > 0 && !granted[e] && !denied[e] &&
                !(owner == e && (page == RESERVED || page == LANDING)) -> denied[e] = true }
    /* time */
#ifndef BREAK_RESERVED_FOR_EVER
    :: atomic { owner == e && page == RESERVED -> end_landing(e); set_free() }
#endif
    :: atomic { owner == e && page == LANDING ->
        expired[e] = true; end_landing(e);
#ifdef BREAK_FREE_ON_TIMER
        set_free() }
#else
        page = QUARANTINED }
#endif
    /* its peer is silent and elsewhere: whether it lives is not known, so its connections go first */
    :: atomic { ELSEWHERE && owner == e && page == QUARANTINED ->
#ifndef BREAK_SILENT_IS_GONE
        cut_all();
#endif
        set_free() }
    /* HandoffDone: the checksum says whether all has landed */
    :: atomic { done_sent[e] && !accepted[e] && !refused[e] && OWNS(e) && page == LANDING ->
        if
#ifdef BREAK_CHECKSUM
        :: true ->
#else
        :: landed[e] == W && !damaged[e] ->
#endif
            assert(owner == e && landed[e] == W && !damaged[e]);
            page = READY; accepted[e] = true
        :: else -> end_landing(owner); set_free(); refused[e] = true
        fi }
    :: atomic { done_sent[e] && !accepted[e] && !refused[e] && !(OWNS(e) && page == LANDING) ->
        refused[e] = true }
    /* the engine is through with it */
    :: atomic { owner == e && page == READY -> end_landing(e); set_free() }
    /* Quiesced */
    :: atomic { quiesced_sent[e] && OWNS(e) && (page == RESERVED || page == LANDING) ->
        end_landing(owner); set_free(); acknowledged[e] = true }
    :: atomic { quiesced_sent[e] && OWNS(e) && page == QUARANTINED ->
        set_free(); acknowledged[e] = true }
    :: atomic { quiesced_sent[e] && !acknowledged[e] &&
                !(OWNS(e) && (page == RESERVED || page == LANDING || page == QUARANTINED)) ->
        acknowledged[e] = true }
    /* Quiesced{broken} */
    :: atomic { broken_sent[e] && owner == e && (page == LANDING || page == QUARANTINED) ->
#ifndef BREAK_NO_CUT_OFF
        cut_off();
#endif
        if
        :: page == LANDING -> end_landing(e)
        :: else
        fi;
        set_free(); acknowledged[e] = true }
    :: atomic { broken_sent[e] && !acknowledged[e] &&
                !(owner == e && (page == LANDING || page == QUARANTINED)) ->
        acknowledged[e] = true }
    /* the peer's process is proven dead */
    :: atomic { owner == e && (page == LANDING || page == QUARANTINED) && DEAD(peer) ->
#ifndef BREAK_DEAD_NOT_CUT_OFF
        cut_off();
#endif
        if
        :: page == LANDING -> end_landing(e)
        :: else
        fi;
        set_free() }
    od
}

/* ---- source: the runs of one epoch, one after the other */

proctype source(byte e)
{
    byte mine;
    bool failed;
begin:
end:
    atomic {
        run_sent[e] && alive && runs[e] < 1 + REPEATS &&
#ifndef BREAK_RUN_WHILE_QUIESCING
        !((quiesced_sent[e] || broken_sent[e]) && !acknowledged[e]) &&
#endif
        (runs[e] == 0 || mine == incarnation) ->
        runs[e]++;
        mine = incarnation;
        failed = false;
        posted[e] = 0;
        granted[e] = false;
        denied[e] = false;
        accepted[e] = false;
        refused[e] = false;
        done_sent[e] = false;
        lease_sent[e] = mine
    }
write:
    do
    :: DEAD(mine) -> goto begin
    :: posted[e] == W -> break
    :: broken[e] -> failed = true; break
    :: stop_sent[e] || denied[e] || expired[e] -> failed = true; break
    :: !granted[e] -> failed = true; break /* no answer for too long */
#ifdef BREAK_NO_LEASE_CHECK
    :: posted[e] < W && !broken[e] ->
#else
    :: posted[e] < W && !broken[e] && granted[e] && !expired[e] ->
#endif
        /* whatever happens here happens between the look and the post */
        if
        :: atomic { !DEAD(mine) && !broken[e] -> in_flight[e]++; posted[e]++ }
        :: DEAD(mine) || broken[e]
        fi
    od;
    /* the flush */
    if
#ifdef BREAK_DONE_BEFORE_FLUSH
    :: !failed && !DEAD(mine)
#endif
#ifdef BREAK_QUIESCED_BEFORE_FLUSH
    :: failed && !DEAD(mine)
#endif
    :: atomic { !DEAD(mine) && !broken[e] && in_flight[e] == 0 -> skip }
    :: atomic { !DEAD(mine) && broken[e] ->
#ifdef BREAK_BROKEN_AS_QUIESCED
        quiesced_sent[e] = true;
#else
        broken_sent[e] = true;
#endif
        goto begin }
    :: DEAD(mine) -> goto begin
    fi;
    if
    :: failed -> goto give_up
    :: else
    fi;
    atomic {
        if
        :: !DEAD(mine) -> done_sent[e] = true
        :: else -> goto begin
        fi
    };
    if
    :: accepted[e] -> goto begin
    :: refused[e] -> skip
    :: stop_sent[e] -> skip
    :: !accepted[e] -> skip /* no answer for too long */
    :: DEAD(mine) -> goto begin
    fi;
give_up:
#ifndef BREAK_NO_QUIESCED
    atomic {
        if
        :: !DEAD(mine) -> quiesced_sent[e] = true
        :: else
        fi
    };
#endif
    goto begin
}

/* ---- network and misfortune */

proctype network(byte e)
{
end:
    do
    :: atomic { in_flight[e] > 0 -> in_flight[e]--; land(e) }
    :: atomic { in_flight[e] > 0 && damages > 0 ->
        damages--; in_flight[e]--; land(e); damaged[e] = true }
    :: atomic { stray[e] > 0 -> stray[e]--; land(e) }
    :: atomic { stray[e] > 0 -> stray[e]-- }
    od
}

inline lose_links()
{
    d_step {
        i = 1;
        do
        :: i < EPOCHS ->
            stray[i] = stray[i] + in_flight[i];
            if
            :: in_flight[i] > 0 -> broken[i] = true
            :: else
            fi;
            in_flight[i] = 0;
            i++
        :: else -> break
        od
    }
}

active proctype misfortune()
{
    byte i;
end:
    do
    :: atomic { crashes > 0 && alive -> crashes--; alive = false; lose_links() }
    :: atomic { restarts > 0 && !alive -> restarts--; alive = true; incarnation++ }
    :: atomic { breaks > 0 -> breaks--; lose_links() }
    :: atomic { target_crashes > 0 && owner > 0 ->
        target_crashes--;
        if
        :: page != QUARANTINED -> end_landing(owner) /* as its router sees it */
        :: else
        fi;
        set_free();
        cut_off(); /* what was under way went to memory that is gone, */
        d_step {   /* and what is posted from now on goes nowhere */
            i = 1;
            do
            :: i < EPOCHS -> broken[i] = broken[i] || run_sent[i]; i++
            :: else -> break
            od
        } }
    od
}

init {
    byte e = 1;
    atomic {
        do
        :: e <= N -> run target(e); run source(e); run network(e); e++
        :: else -> break
        od
    }
}

/* Nothing can move: nothing leaked, and all that was reserved has ended. */
active proctype judge()
{
    byte i = 1;
    timeout ->
    assert(page == FREE);
    do
    :: i <= N -> assert(ends[i] == 1 && in_flight[i] == 0 && stray[i] == 0); i++
    :: else -> break
    od
}
