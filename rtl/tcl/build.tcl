# SPDX-License-Identifier: Apache-2.0
# The hardware room: from shears.v to a bitstream, in batch. `shears build` writes this folder; then
#
#   vivado -mode batch -notrace -source build.tcl [-tclargs JOBS]
#
# ends with <output>.bit and <output>.hwh beside this file, or with an error that says what is wrong.

set folder [file dirname [file normalize [info script]]]
foreach name {settings checks package_ip block_design} {
    source [file join $folder $name.tcl]
}

set jobs 2
if {[info exists argv] && [llength $argv]} {
    set jobs [lindex $argv 0]
}

proc report {name text} {
    global folder
    file mkdir [file join $folder reports]
    set channel [open [file join $folder reports $name] w]
    puts $channel $text
    close $channel
}

proc copy_text {from to change} {
    set channel [open $from r]
    set text [read $channel]
    close $channel
    set channel [open $to w]
    puts -nonewline $channel [$change $text]
    close $channel
}

# pynq 4.0 looks for the rate of a PL clock under the name that Zynq UltraScale+ has for it, and
# without one cannot load an overlay of a Zynq-7000: say it under that name too.
proc name_clock_rates {text} {
    return [regsub -all {<PARAMETER NAME="PCW_ACT_FPGA(\d)_PERIPHERAL_FREQMHZ" VALUE="([^"]*)" ?/>} \
        $text {&<PARAMETER NAME="PSU__CRL_APB__PL\1_REF_CTRL__ACT_FREQMHZ" VALUE="\2"/>}]
}

# The pair is complete whenever the .bit is there: the old one goes first, the new one comes last.
proc collect {bit hwh} {
    global folder output
    set to [file join $folder $output]
    copy_text $hwh $to.hwh.new name_clock_rates
    file copy -force $bit $to.bit.new
    file delete -force $to.bit
    file rename -force $to.hwh.new $to.hwh
    file rename -force $to.bit.new $to.bit
}

proc build {} {
    global folder part design output board vivado_versions any_version jobs budget clock_hz inputs_digest
    set version [version -short]
    check_version $version $vivado_versions $any_version
    file delete -force [file join $folder result.json]

    say "packaging the IP"
    package_ip

    say "making the block design"
    set project [file join $folder vivado project]
    create_project -force $design $project -part $part
    set_property ip_repo_paths [file join $folder ip] [current_project]
    update_ip_catalog -rebuild
    make_block_design
    set bd [get_files -norecurse $design.bd]
    set_property synth_checkpoint_mode None $bd
    generate_target all $bd
    add_files -norecurse [make_wrapper -files $bd -top]
    add_files -fileset constrs_1 -norecurse [file join $folder constraints.xdc]
    set_property top ${design}_wrapper [current_fileset]
    update_compile_order -fileset sources_1

    say "synthesis"
    set_property strategy Flow_PerfOptimized_high [get_runs synth_1]
    launch_runs synth_1 -jobs $jobs
    wait_on_run synth_1
    check_run synth_1
    open_run synth_1 -name synth_1
    set text [report_utilization -return_string]
    report utilization_synthesis.rpt $text
    check_utilisation $text $budget "after synthesis"
    close_design

    say "implementation"
    set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]
    launch_runs impl_1 -to_step write_bitstream -jobs $jobs
    wait_on_run impl_1
    check_run impl_1
    open_run impl_1
    report timing.rpt [report_timing_summary -return_string]
    set text [report_utilization -return_string]
    report utilization.rpt $text
    report utilization_blocks.rpt [report_utilization -hierarchical -return_string]
    set used [check_utilisation $text $budget "after implementation"]
    set setup [check_slack setup $clock_hz]
    set hold [check_slack hold $clock_hz]

    say "collecting"
    set runs [get_property DIRECTORY [get_runs impl_1]]
    set hwh {}
    foreach kind {gen srcs} {
        lappend hwh {*}[glob -nocomplain -directory $project \
            $design.$kind/sources_1/bd/$design/hw_handoff/$design.hwh]
    }
    if {![llength $hwh]} {
        fail "Vivado wrote no $design.hwh below $project"
    }
    collect [file join $runs ${design}_wrapper.bit] [lindex $hwh 0]
    set rows {}
    dict for {kind pair} $used {
        lappend rows "  \"$kind\": [lindex $pair 0]"
    }
    set channel [open [file join $folder result.json.new] w]
    puts $channel "{\n \"board\": \"$board\",\n \"vivado\": \"$version\",\n\
        \"inputs\": \"$inputs_digest\",\n \"clock_hz\": $clock_hz,\n\
        \"setup_slack_ns\": $setup,\n \"hold_slack_ns\": $hold,\n\
        \"used\": {\n[join $rows ",\n"]\n }\n}"
    close $channel
    file rename -force [file join $folder result.json.new] [file join $folder result.json]
    say "done: $output.bit and $output.hwh"
}

build
