# SPDX-License-Identifier: Apache-2.0
# The hardware room: what a build has to pass, each check failing with the numbers.
# Vivado's interpreter is Tcl 8.5: nothing newer is used here.

proc say {text} {
    puts "shears: $text"
    flush stdout
}

# The line that `shears build` looks for, and the end of the run.
proc fail {text} {
    puts "ERROR: shears: $text"
    flush stdout
    error "shears: $text"
}

# Compare "2023.2" or "2023.2.1" with the oldest and the newest version that is known to work.
proc check_version {found versions any} {
    foreach {oldest newest} $versions break
    set numbers {}
    foreach text [list $oldest $found $newest] {
        if {![regexp {^v?(\d{4})\.(\d+)} $text -> year release]} {
            fail "Vivado's version must read like $newest, not \"$found\""
        }
        lappend numbers [expr {100 * $year + $release}]
    }
    foreach {low number high} $numbers break
    if {$number < $low || $number > $high} {
        set text "Vivado must be $oldest to $newest, not $found"
        if {!$any} {
            fail "$text; install one of these, or try with shears build --any-version"
        }
        say "$text: going on, as --any-version asks"
    }
}

# The clock that the wizard really makes, against the one asked for; 0.1 % is what rounding to
# an MMCM's factors may cost.
proc check_clock {made_hz wanted_hz} {
    if {abs($made_hz - $wanted_hz) > $wanted_hz / 1000.0} {
        fail [format "the clock wizard makes %.3f MHz in place of %.3f; choose an accelerator_hz \
            that it can make from the reference" [expr {$made_hz / 1e6}] [expr {$wanted_hz / 1e6}]]
    }
}

# Worst slack of the open design, of "setup" or "hold", and the path that has it.
proc check_slack {kind clock_hz} {
    set path [lindex [get_timing_paths -$kind -max_paths 1 -nworst 1] 0]
    if {$path eq ""} {
        fail "there is no $kind path to check: the clock reaches nothing, or is not constrained"
    }
    set slack [get_property SLACK $path]
    if {![string is double -strict $slack]} {
        fail "the worst $kind path has no slack (\"$slack\"): its clock is not constrained"
    }
    if {$slack < 0} {
        fail [format "timing is not met: worst %s slack %.3f ns at %.1f MHz, from %s to %s; see\
            reports/timing.rpt, lower accelerator_hz or choose a smaller configuration" $kind \
            $slack [expr {$clock_hz / 1e6}] [get_property STARTPOINT_PIN $path] \
            [get_property ENDPOINT_PIN $path]]
    }
    return $slack
}

# What a report_utilization text says is used and available, as kind -> {used available}.
proc read_utilisation {text} {
    set kinds {{Slice LUTs} lut {Slice Registers} ff {Block RAM Tile} bram36 DSPs dsp}
    set found [dict create]
    foreach line [split $text "\n"] {
        set cells [split [string trim $line] "|"]
        set name [string trim [string map {* ""} [lindex $cells 1]]]
        # name, used, fixed, (prohibited, since 2021.1,) available, percent
        if {[dict exists $kinds $name] && [llength $cells] >= 7} {
            set kind [dict get $kinds $name]
            if {![dict exists $found $kind]} {
                set used [string trim [lindex $cells 2]]
                dict set found $kind [list $used [string trim [lindex $cells end-2]]]
            }
        }
    }
    return $found
}

# A design must fit the device and the board file's budget; all that do not are named at once.
proc check_utilisation {text budget when} {
    set found [read_utilisation $text]
    set over {}
    dict for {kind limit} $budget {
        if {![dict exists $found $kind]} {
            fail "the utilisation report $when has no row for $kind; see reports/"
        }
        foreach {used available} [dict get $found $kind] break
        if {$available < $limit} {
            fail "the device has $available of $kind, the board file says $limit: correct its\
                budget or its part"
        }
        if {$used > $limit} {
            lappend over "$used of $limit $kind"
        }
    }
    if {[llength $over]} {
        fail "the design does not fit $when: [join $over {, }]; choose a smaller configuration\
            (shears explore lists some)"
    }
    return $found
}

proc check_run {run} {
    set status [get_property STATUS [get_runs $run]]
    if {[get_property PROGRESS [get_runs $run]] ne "100%"} {
        fail "$run stopped with \"$status\"; see\
            [file join [get_property DIRECTORY [get_runs $run]] runme.log]"
    }
}
