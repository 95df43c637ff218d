# SPDX-License-Identifier: Apache-2.0
# Room tests: commands of Vivado that record what they are asked, for a plain tclsh.
#
# Called as: tclsh vivado_stand_in.tcl SCENARIO RECORD SCRIPT ARGUMENTS...
# SCENARIO sets `known` (kind -> names that exist), `properties` (object,property -> value),
# `version`, `utilisation` (text) and `handoff` (the .hwh that a run writes). RECORD gets a line a
# command, as a JSON list of strings. A command that is not here is an error, as in Vivado.

foreach {scenario record script} $argv break
set argv [lrange $argv 3 end]
source $scenario
set recorder [open $record w]

proc json {text} {
    return "\"[string map {\\ \\\\ \" \\\" \n \\n \t \\t} $text]\""
}

proc note {args} {
    set words {}
    foreach word $args {
        lappend words [json $word]
    }
    puts $::recorder "\[[join $words {, }]\]"
    flush $::recorder
}

# Objects are named by their paths; one that does not exist is an error here (a warning in Vivado).
proc exists {kind name} {
    set name [string trimleft $name /]
    if {[lsearch -exact $::known($kind) $name] < 0} {
        error "stand-in: there is no $kind $name"
    }
    return $name
}
foreach {command kind} {
    get_bd_pins pin get_bd_intf_pins interface_pin get_bd_intf_ports interface_port
    get_bd_addr_spaces space get_bd_addr_segs segment get_runs run
} {
    proc $command {name} "return \[exists $kind \$name\]"
}

proc version {option} { return $::version }
proc current_project {} { return project }
proc current_fileset {} { return sources_1 }
proc get_files {args} { return [lindex $args end] }
proc make_wrapper {args} { note make_wrapper {*}$args; return wrapper.v }
proc create_project {args} {
    note create_project {*}$args
    set ::folder_now [lindex $args 2]
    set ::project_now [lindex $args 1]
    file mkdir $::folder_now
}
proc set_property {args} {
    if {[lindex $args 0] eq "-dict"} {
        foreach {name value} [lindex $args 1] {
            note set_property $name $value [lindex $args 2]
        }
    } else {
        note set_property {*}$args
    }
}
proc get_property {name object} {
    if {$name eq "DIRECTORY"} {
        return [file join $::folder_now $::project_now.runs $object]
    }
    return $::properties($object,$name)
}
proc get_timing_paths {args} {
    note get_timing_paths {*}$args
    return $::properties(paths,[string range [lindex $args 0] 1 end])
}
proc report_utilization {args} { return $::utilisation }
proc report_timing_summary {args} { return "timing" }
proc create_bd_cell {args} { note create_bd_cell {*}$args; return [lindex $args end] }
proc create_bd_intf_port {args} {
    note create_bd_intf_port {*}$args
    lappend ::known(interface_port) [lindex $args end]
}
proc launch_runs {args} {
    note launch_runs {*}$args
    set directory [get_property DIRECTORY [lindex $args 0]]
    file mkdir $directory
    if {[lindex $args 0] eq "impl_1"} {
        set name [string map {.bd ""} $::project_now]
        set channel [open [file join $directory ${name}_wrapper.bit] w]
        puts -nonewline $channel bitstream
        close $channel
        set where [file join $::folder_now $name.gen sources_1 bd $name hw_handoff]
        file mkdir $where
        file copy -force $::handoff [file join $where $name.hwh]
    }
}

# The IP packager: package_project infers what it would infer from the names of the ports.
namespace eval ipx {
    proc current_core {} { return core }
    proc package_project {args} { note ipx::package_project {*}$args }
    proc get_bus_interfaces {args} {
        set name [lindex $args [expr {[lindex $args 0] eq "-quiet"}]]
        return [expr {[lsearch -exact $::known(inferred) $name] < 0 ? "" : "bus:$name"}]
    }
    proc infer_bus_interface {port type core} {
        note ipx::infer_bus_interface $port $type
        lappend ::known(inferred) $port
    }
    foreach kind {bus_parameters memory_maps address_blocks} {
        proc get_$kind {args} { return "" }
    }
    proc add_bus_parameter {name bus} { return $bus/$name }
    foreach kind {memory_map address_block register field user_parameter} {
        proc add_$kind {name parent} "
            note ipx::add_$kind \$name \$parent
            return \$parent/\$name
        "
    }
}
foreach command {
    add_files update_compile_order update_ip_catalog generate_target create_bd_design
    connect_bd_net connect_bd_intf_net assign_bd_address validate_bd_design save_bd_design
    wait_on_run open_run close_design close_project
    ipx::associate_bus_interfaces ipx::create_xgui_files ipx::update_checksums
    ipx::check_integrity ipx::save_core
} {
    proc $command {args} "note $command {*}\$args"
}

source $script
