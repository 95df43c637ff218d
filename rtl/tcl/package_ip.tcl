# SPDX-License-Identifier: Apache-2.0
# The hardware room: package shears.v as an IP: buses, clock, reset, interrupt, registers, parameters.
# build.tcl calls package_ip; settings.tcl has the register map and the parameters.

proc bus_interface {name core} {
    return [ipx::get_bus_interfaces -quiet $name -of_objects $core]
}

proc bus_parameter {name value bus} {
    set parameter [ipx::get_bus_parameters -quiet $name -of_objects $bus]
    if {$parameter eq ""} {
        set parameter [ipx::add_bus_parameter $name $bus]
    }
    set_property value $value $parameter
}

# Infer an interface from a single port, unless package_project did already.
proc single_port {port type core} {
    if {[bus_interface $port $core] eq ""} {
        ipx::infer_bus_interface $port xilinx.com:signal:${type}_rtl:1.0 $core
    }
}

proc package_ip {} {
    global part top verilog folder ip_vendor ip_library ip_name ip_version ip_description
    global ip_parameters registers registers_bytes
    set root [file join $folder ip]
    create_project -force package [file join $folder vivado package] -part $part
    add_files -norecurse [file join $folder $verilog]
    set_property top $top [current_fileset]
    update_compile_order -fileset sources_1
    # s_axi_* and m_axi_* become bus interfaces by their names.
    ipx::package_project -root_dir $root -vendor $ip_vendor -library $ip_library \
        -taxonomy /UserIP -import_files -set_current true -force
    set core [ipx::current_core]
    set_property name $ip_name $core
    set_property version $ip_version $core
    set_property display_name "Shears accelerator" $core
    set_property description $ip_description $core
    set_property supported_families {zynq Production} $core

    single_port aclk clock $core
    single_port aresetn reset $core
    single_port irq interrupt $core
    foreach bus {s_axi m_axi} {
        if {[bus_interface $bus $core] eq ""} {
            fail "Vivado did not infer the bus $bus from the ports of $verilog"
        }
        ipx::associate_bus_interfaces -busif $bus -clock aclk $core
    }
    ipx::associate_bus_interfaces -clock aclk -reset aresetn $core
    bus_parameter POLARITY ACTIVE_LOW [bus_interface aresetn $core]
    bus_parameter SENSITIVITY LEVEL_HIGH [bus_interface irq $core]
    bus_parameter SUPPORTS_NARROW_BURST 0 [bus_interface m_axi $core]
    bus_parameter MAX_BURST_LENGTH [dict get $ip_parameters MAX_BURST_BEATS] \
        [bus_interface m_axi $core]
    bus_parameter NUM_READ_OUTSTANDING [dict get $ip_parameters OUTSTANDING_READS] \
        [bus_interface m_axi $core]

    set map [ipx::get_memory_maps -quiet s_axi -of_objects $core]
    if {$map eq ""} {
        set map [ipx::add_memory_map s_axi $core]
    }
    set_property slave_memory_map_ref s_axi [bus_interface s_axi $core]
    set block [ipx::get_address_blocks -quiet reg0 -of_objects $map]
    if {$block eq ""} {
        set block [ipx::add_address_block reg0 $map]
    }
    set_property base_address 0 $block
    set_property range $registers_bytes $block
    set_property width 32 $block
    set_property usage register $block
    foreach register $registers {
        foreach {name offset access text fields} $register break
        set entry [ipx::add_register $name $block]
        set_property address_offset $offset $entry
        set_property size 32 $entry
        set_property access $access $entry
        set_property description $text $entry
        foreach field $fields {
            foreach {name low bits text} $field break
            set entry_field [ipx::add_field $name $entry]
            set_property bit_offset $low $entry_field
            set_property bit_width $bits $entry_field
            set_property access $access $entry_field
            set_property description $text $entry_field
        }
    }

    # For software alone: they appear in the overlay's .hwh and change no hardware.
    dict for {name value} $ip_parameters {
        set parameter [ipx::add_user_parameter $name $core]
        set_property value_resolve_type user $parameter
        set_property value_format string $parameter
        set_property value $value $parameter
    }
    ipx::create_xgui_files $core
    ipx::update_checksums $core
    ipx::check_integrity $core
    ipx::save_core $core
    close_project
}
